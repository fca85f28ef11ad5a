# docker build -t reluctant . && mkdir -p runs && docker run --rm --user "$(id -u)" -v "$PWD/runs:/app/runs" reluctant demo
FROM python:3.11-slim

RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.13,<2.14" \
    && pip install --no-cache-dir -c constraints.txt ".[secure,digits]"
ENV HOME=/tmp MPLCONFIGDIR=/tmp
RUN mkdir runs && chown nobody runs
USER nobody
ENTRYPOINT ["reluctant"]
CMD ["--help"]
