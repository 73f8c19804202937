# The reading page. It writes to /data alone, so the root file system can be read-only:
#   docker build -t covidcxr .
#   docker run --read-only --tmpfs /tmp -v covidcxr-data:/data -e COVIDCXR_TOKEN -p 8000:8000 covidcxr
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m venv /opt/covidcxr \
    && pip install --no-cache-dir uv \
    && uv pip install --no-cache --python /opt/covidcxr/bin/python --torch-backend cpu ".[serve]"

FROM python:3.12-slim
COPY --from=build /opt/covidcxr /opt/covidcxr
RUN useradd --system --uid 10001 covidcxr && install --directory --owner covidcxr /data
USER covidcxr
WORKDIR /data
ENV PATH=/opt/covidcxr/bin:$PATH \
    HF_HUB_OFFLINE=1 \
    MPLCONFIGDIR=/tmp \
    OMP_NUM_THREADS=1 \
    PYTHONDONTWRITEBYTECODE=1
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://localhost:8000/', timeout=4)"]
ENTRYPOINT ["covidcxr", "serve", "--host", "0.0.0.0", "--store", "/data/store"]
