# syntax=docker/dockerfile:1
#
# Two images:
#
#   docker build -t resource-allocator .                       the service; it expects a database (DATABASE_URL)
#   docker build -t resource-allocator-embedded --target embedded .
#                                                              the same with its own Postgres inside, for one host
#
# Both listen on every address of the container, since nothing else reaches it from outside, and the service refuses
# to do so without TLS and credentials. Give it those, or, on a network that you trust, say that you want neither:
#
#   docker run -p 127.0.0.1:50051:50051 \
#       -e DATABASE_URL=postgres://user:password@host/name \
#       -e RESOURCE_ALLOCATOR_INSECURE_ALLOW_REMOTE=true resource-allocator
#
#   docker run -p 127.0.0.1:50051:50051 -v allocator-data:/var/lib/resource-allocator \
#       -e RESOURCE_ALLOCATOR_INSECURE_ALLOW_REMOTE=true resource-allocator-embedded
#
# That variable is never set here: whoever starts the container answers for it.

# Keep in step with rust-version in Cargo.toml.
FROM rust:1.95-bookworm AS build
WORKDIR /src
ENV CARGO_TERM_COLOR=never SQLX_OFFLINE=true

# The dependencies alone, over an empty crate: this layer lasts until Cargo.toml or Cargo.lock changes. Benches would
# need their files, so they are cut out here; the real manifest comes back below.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
    && echo 'fn main() {}' >src/main.rs \
    && cp src/main.rs build.rs \
    && touch src/lib.rs \
    && sed -i '/^\[\[bench\]\]$/,/^$/d' Cargo.toml \
    && cargo build --release --locked

# The service. Its files are newer than the stand-ins above, also where their dates say otherwise. No protoc is needed.
COPY . .
RUN touch build.rs src/main.rs src/lib.rs \
    && cargo build --release --locked --bin resource-allocator \
    && install -D --strip target/release/resource-allocator /out/resource-allocator


FROM debian:bookworm-slim AS base
# The newest of the distribution's release, not a version that leaves its mirrors one day.
# ca-certificates: a database or a caller may show a certificate of a public authority.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
# A fixed number, so that a volume's owner and a cluster's "run as non-root" policy can name it.
RUN groupadd --gid 10001 allocator \
    && useradd --uid 10001 --gid allocator --no-create-home --home-dir /var/lib/resource-allocator \
        --shell /usr/sbin/nologin allocator \
    && install -d -m 0700 -o allocator -g allocator /var/lib/resource-allocator
COPY --from=build /out/resource-allocator /usr/local/bin/resource-allocator
ENV RESOURCE_ALLOCATOR_LISTEN=0.0.0.0:50051 \
    RESOURCE_ALLOCATOR_DATA_DIR=/var/lib/resource-allocator
EXPOSE 50051
# SIGTERM drains: the service says NOT_SERVING, lets calls end, then stops. A second one stops it at once.
STOPSIGNAL SIGTERM
# Asks the service itself. With TLS, set RESOURCE_ALLOCATOR_ENDPOINT to https:// and a name of the certificate.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["resource-allocator", "health"]
ENTRYPOINT ["resource-allocator"]
CMD ["serve"]


# With PostgreSQL's programs, for the embedded database. Its data is in the volume: keep it, and run one container on it.
FROM base AS embedded
# The package would make a cluster of its own; only its programs are wanted.
# hadolint ignore=DL3008
RUN install -d /etc/postgresql-common/createcluster.d \
    && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/none.conf \
    && apt-get update \
    && apt-get install -y --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/*
VOLUME /var/lib/resource-allocator
USER 10001:10001


# The last stage is what a build without --target makes.
FROM base AS service
USER 10001:10001
