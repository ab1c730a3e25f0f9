# MLServer with towline's runtime, for KServe and Seldon Core 2: docker build -f deployments/mlserver.Dockerfile .
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm
COPY deployments/uv-requirements.txt deployments/mlserver-requirements.txt /build/
RUN python3 -m venv /venv \
 && /venv/bin/pip install --quiet --disable-pip-version-check --root-user-action=ignore \
      --no-cache-dir --target /tmp/uv --require-hashes -r /build/uv-requirements.txt \
 && /tmp/uv/bin/uv pip install --quiet --python /venv/bin/python --no-cache --no-deps --compile-bytecode \
      --only-binary :all: --require-hashes -r /build/mlserver-requirements.txt \
 && rm -rf /tmp/uv \
 && find /venv -type d -name tests -prune -exec rm -rf {} + \
 && ln -s /venv/lib/python3*/site-packages/scikit_learn.libs/libgomp-*.so* /venv/lib/libgomp.so.1
COPY towline /app/towline
ENV PATH=/venv/bin:$PATH LD_LIBRARY_PATH=/venv/lib PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp OMP_NUM_THREADS=1 MLSERVER_MODELS_DIR=/mnt/models
# MLServer writes its metrics into the working folder
WORKDIR /tmp
USER 10001:10001
EXPOSE 8080 8081
CMD ["sh", "-c", "exec mlserver start \"$MLSERVER_MODELS_DIR\""]
