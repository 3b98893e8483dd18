# make image [VARIANT=cpu|cuda|cu126|...]; how to run it: documentation/how-to/container.md
FROM python:3.12-slim-bookworm
# cpu; cuda, as PyTorch has it on PyPI; or another folder of https://download.pytorch.org/whl, such as cu126
ARG VARIANT=cpu
ENV PIP_NO_CACHE_DIR=1

# torch.compile, which nnU-Net switches on for CUDA, needs a compiler
# hadolint ignore=DL3008
RUN if [ "$VARIANT" != cpu ]; then \
      apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*; \
    fi

# torchvision (timm wants it) must be of torch's own kind, so it comes from the same place
# hadolint ignore=DL3013
RUN case "$VARIANT" in cuda) index=https://pypi.org/simple ;; *) index=https://download.pytorch.org/whl/$VARIANT ;; esac; \
    pip install --index-url "$index" torch torchvision && \
    pip install "nnunetv2>=2.8,<3"

COPY . /opt/emim_nnunet
RUN pip install /opt/emim_nnunet && rm -rf /opt/emim_nnunet/build && emim_register

# whoever runs it (docker run --user) has no name and no home in it; all that is worth keeping is mounted at /data
ENV HOME=/tmp USER=emim \
    nnUNet_raw=/data/nnUNet_raw nnUNet_preprocessed=/data/nnUNet_preprocessed nnUNet_results=/data/nnUNet_results
RUN useradd --no-create-home --uid 1000 emim
USER 1000
WORKDIR /data
CMD ["emim_train", "--help"]
