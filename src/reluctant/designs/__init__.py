"""Networks redesigned for private inference, one file a paper. A new one is its file and a row here."""

from reluctant.registry import Registry

DESIGNS = Registry(
    "design",
    {
        "hybrenet": "reluctant.designs.hybrenet:HybReNet",
        "deepreduce": "reluctant.designs.deepreduce:DeepReDuce",
        "sphynx": "reluctant.designs.sphynx:Sphynx",
        "cryptonas": "reluctant.designs.cryptonas:CryptoNAS",
        "adjusted": "reluctant.designs.adjusted:Adjusted",
    },
)
