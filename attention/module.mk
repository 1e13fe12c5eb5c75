# Attention kernels: for the CPU, and for CUDA where nvcc is installed; else cuda_absent.c stands for
# the .cu files.
SRC_kvmem-attention     := $(filter-out $(if $(NVCC),attention/cuda_absent.c),\
                             $(wildcard attention/*.c)) $(wildcard attention/cpu/*.c) \
                           $(call cuda_sources,attention/cuda/*.cu)
LIBS_kvmem-attention.so := libm

ARCHIVES += kvmem-attention
SHARED   += kvmem-attention
