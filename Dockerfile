# docker build -t iqa . && docker run iqa               runs `make demo`
# docker run iqa make test                              runs the tests
# docker build --build-arg TORCH= -t iqa .              takes the CUDA build of PyTorch
FROM python:3.12-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /iqa
COPY . .
ARG TORCH=cpu
RUN make setup TORCH=$TORCH
CMD ["make", "demo"]
