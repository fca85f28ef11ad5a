"""Neural networks made cheap enough for private inference."""
