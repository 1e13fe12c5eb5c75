# What the benchmarks share: clock, percentiles, JSON lines.
SRC_kvb  := $(wildcard bench/common/*.c)
ARCHIVES += kvb

# kvmem-replay uses the library as an engine would: the shared one, public headers only. Its tests
# are linked with the archive. Without nvcc cuda_absent.c stands for the .cu files.
SRC_kvb-replay := $(filter-out bench/replay/main.c $(if $(NVCC),bench/replay/cuda_absent.c),\
                    $(wildcard bench/replay/*.c)) $(call cuda_sources,bench/replay/*.cu)
ARCHIVES += kvb-replay
PROGRAMS += bin/kvmem-replay
SRC_bin/kvmem-replay  := bench/replay/main.c
LIBS_bin/kvmem-replay := kvb-replay kvb kvmem-attention.so kvmem.so libcjson

# Each bench/bench_x.c is a program, and may use what is inside the library. Those that also
# measure jemalloc say so below: LIBS_bench/bench_x += jemalloc
BENCHES  := $(patsubst %.c,%,$(wildcard bench/bench_*.c))
PROGRAMS += $(BENCHES)
$(foreach b,$(BENCHES),$(eval SRC_$b := $b.c))
$(foreach b,$(BENCHES),$(eval LIBS_$b := kvb kvmem kvmem-attention nettle))

# Attention: its kernels' rows on the CPU and on a GPU, and any shape from the command line.
PROGRAMS += bench/attention
SRC_bench/attention  := $(filter-out $(if $(NVCC),bench/attention/cuda_absent.c),\
                          $(wildcard bench/attention/*.c)) \
                        $(call cuda_sources,bench/attention/cuda/*.c bench/attention/cuda/*.cu)
LIBS_bench/attention := kvb $(if $(NVCC),kvtgpu) kvt kvmem-attention kvmem nettle

# Benchmarks on a GPU, in the order of their rows; not run by `make bench`. The last one is
# bench/attention --device cuda.
BENCHES_GPU := $(addprefix bench/gpu/,attach grow step_256 fork_tail_256 block_copy region_append \
                 shared_prefix move_memory kill_reuse kv_write)
ifneq ($(NVCC),)
PROGRAMS += $(BENCHES_GPU)
$(foreach b,$(BENCHES_GPU),$(eval SRC_$b := $b.c))
$(foreach b,$(BENCHES_GPU),$(eval LIBS_$b := kvbgpu kvb kvtgpu kvt kvmem-attention kvmem nettle))
SRC_kvbgpu := bench/gpu/common.c
ARCHIVES   += kvbgpu
endif

# Benchmarks of whole programs are scripts, run after the others.
BENCH_SCRIPTS := $(wildcard bench/bench_*.sh bench/bench_*.py)

LIBS_bench/bench_block_cycle += jemalloc
