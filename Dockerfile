# syntax=docker/dockerfile:1
# The image of the operator. Built in two stages so that it holds no compiler, no pip and no cache: what runs is Python, the
# pinned dependencies and the package.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
WORKDIR /src
RUN python -m venv --without-pip /opt/modelrollout
# Dependencies first: they change less often than the package, so that the layer is reused.
COPY pyproject.toml constraints.txt ./
RUN python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]))' > requirements.txt \
 && pip --python /opt/modelrollout/bin/python install --no-cache-dir --no-compile -r requirements.txt -c constraints.txt
COPY README.md LICENSE ./
COPY operator ./operator
RUN pip --python /opt/modelrollout/bin/python install --no-cache-dir --no-compile --no-deps . \
 && python -m compileall -q /opt/modelrollout/lib

FROM python:${PYTHON}-slim
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="modelrollout" \
      org.opencontainers.image.description="Releases machine-learning models on Kubernetes: step by step, compared with their baseline, promoted or rolled back by evidence" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/modelrollout /opt/modelrollout
# The file system is read-only when it runs, and logs are lines.
ENV PATH=/opt/modelrollout/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# A number, so that runAsNonRoot can be checked without a user database.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["modelrollout"]
CMD ["run"]
