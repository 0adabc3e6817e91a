# The app for others, on a CPU: `make image`, then `docker run --publish 7860:7860 --volume lol:/cache lol-explorer`.
# A Space of the Docker kind is built from it too (`make space`). What it serves, and to name other folders: docs/howto/serve.md
FROM python:3.12-slim

# PyTorch's own index has the same versions built without CUDA, which pip takes for newer ones.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1
RUN --mount=type=bind,source=dist,target=/dist --mount=type=bind,source=requirements.txt,target=/requirements.txt \
    pip install --constraint /requirements.txt /dist/lol_explorer_core-*.whl "$(ls /dist/lol_explorer-*.whl)[images]"

# The sample zoos with their models lie beside the package, as they do in a clone.
COPY sample_loras /usr/local/lib/python3.12/site-packages/sample_loras

RUN useradd --create-home --uid 1000 lol && install --directory --owner lol /cache
USER 1000
ENV LOL_SERVED=1 LOL_CACHE_DIR=/cache LOL_CACHE_LIMIT_GB=2 HF_HOME=/cache/huggingface
VOLUME /cache
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/_stcore/health')"]
CMD ["lol-explorer", "--address", "0.0.0.0", "--port", "7860", "--headless"]
