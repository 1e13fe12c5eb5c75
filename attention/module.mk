# Attention kernels: for the CPU, and for CUDA where nvcc is installed; else, and with sanitizers, which
# see nothing of a GPU, cuda_absent.c stands for the .cu files.
ATTENTION_CUDA := $(if $(SANITIZED),,$(call cuda_sources,attention/cuda/*.cu))

SRC_kvmem-attention     := $(filter-out $(if $(ATTENTION_CUDA),attention/cuda_absent.c),\
                             $(wildcard attention/*.c)) $(wildcard attention/cpu/*.c) \
                           $(ATTENTION_CUDA)
LIBS_kvmem-attention.so := libm

ARCHIVES += kvmem-attention
SHARED   += kvmem-attention
