# Attention kernels: plain C, and CUDA where nvcc is installed.
SRC_kvmem-attention     := $(wildcard attention/*.c) $(call cuda_sources,attention/cuda/*.cu)
LIBS_kvmem-attention.so := libm

ARCHIVES += kvmem-attention
SHARED   += kvmem-attention
