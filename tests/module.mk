# Each .c file in a folder of tests is a program of its own; a file added there is picked up by
# itself. All are linked with tests/support and with the static library, internals included.
#
#   unit model wire fault ipc   Criterion; unit/test_ctl_* and test_replay_* are linked with the code
#                               of kvmemctl and kvmem-replay as well
#   daemon                      Criterion, linked with the daemon's own code as well
#   tsan                        plain main(), since Criterion does not run under ThreadSanitizer
#   helpers                     plain main(), started by tests: $KVMEM_BUILD_DIR/tests/helpers/x
#   examples                    plain main(), linked with libkvmem.so as a user would
#   gpu                         plain main() for a machine with a GPU, which skips without one; those
#                               with kernels (support/gpu) need nvcc, and are built once more, as
#                               fake_gpu/x, for the fake driver
#                               a .cu file there is a program for the CUDA runtime alone
#   scripts abi                 shell and Python, run as they are (they need their x bit)
#
# A plain program or a script passes with exit status 0; 77 means skipped, its last line says
# why. A helper that dies of SIGSEGV on purpose must say so to the address sanitizer:
# const char *__asan_default_options(void) { return "handle_segv=0"; }
SRC_kvt  := $(wildcard tests/support/*.c)
ARCHIVES += kvt

# Kernels, and what tests and benchmarks with kernels share.
ifneq ($(NVCC),)
SRC_kvtgpu := $(wildcard tests/support/gpu/*.c tests/support/gpu/*.cu)
ARCHIVES   += kvtgpu
endif

# The same on the CPU, over the fake driver.
SRC_kvtgpufake := $(wildcard tests/support/gpu/*.c tests/support/gpu_fake/*.c)
ARCHIVES       += kvtgpufake

tests_in = $(patsubst %.c,%,$(wildcard $(patsubst %,tests/%/*.c,$1)))
INSIDE  := kvt kvb kvmem kvmem-attention nettle libcjson

TESTS_CRITERION := $(call tests_in,unit model wire fault ipc daemon)
# Tests of tests/gpu with kernels of their own: built with nvcc, and a second time for the fake GPU.
# Those of attention need a real GPU, since its kernels are launched by the CUDA runtime.
WITH_RUNTIME    := $(filter tests/gpu/attention_%,$(call tests_in,gpu))
WITH_KERNELS    := $(filter-out $(WITH_RUNTIME),\
                     $(patsubst %.c,%,$(shell grep -l support/gpu/ tests/gpu/*.c)))
TESTS_GPU       := $(if $(NVCC),$(call tests_in,gpu),$(filter-out $(WITH_KERNELS) $(WITH_RUNTIME),$(call tests_in,gpu)))
TESTS_CU   := $(if $(NVCC),$(patsubst %.cu,%,$(wildcard tests/gpu/*.cu)))
TESTS_FAKE_GPU  := $(patsubst tests/gpu/%,tests/fake_gpu/%,$(WITH_KERNELS))
TESTS_PLAIN     := $(call tests_in,tsan examples) $(TESTS_GPU) $(TESTS_CU) $(TESTS_FAKE_GPU)
TESTS_SCRIPT    := $(wildcard $(foreach s,sh py,tests/scripts/*.$s tests/abi/*.$s))
ifeq ($(MODE),asan)
# test_ipc_cuda.sh picks cases, for which Criterion leaks 48 bytes.
TESTS_SCRIPT    := $(filter-out tests/abi/% tests/scripts/runner.sh tests/scripts/test_ipc_cuda.sh,\
                     $(TESTS_SCRIPT))
endif
ifeq ($(MODE),tsan)
TESTS_CRITERION :=
TESTS_SCRIPT    :=
TESTS_PLAIN     := $(call tests_in,tsan)
endif

$(foreach t,$(TESTS_CRITERION),$(eval LIBS_$t := $(INSIDE) criterion))
$(foreach t,$(filter tests/unit/test_ctl_%,$(TESTS_CRITERION)),\
  $(eval LIBS_$t := kvctl $(INSIDE) criterion))
$(foreach t,$(filter tests/unit/test_replay_%,$(TESTS_CRITERION)),\
  $(eval LIBS_$t := kvb-replay $(INSIDE) criterion))
$(foreach t,$(call tests_in,daemon),$(eval LIBS_$t := kvt kvd $(INSIDE) liburing jemalloc criterion))
$(foreach t,$(call tests_in,tsan helpers),$(eval LIBS_$t := $(INSIDE)))
LIBS_tests/tsan/devices := kvt kvd $(INSIDE) liburing jemalloc
$(foreach t,$(TESTS_GPU),$(eval LIBS_$t := $(if $(NVCC),kvtgpu) kvt kvmem-attention kvmem nettle))
$(foreach t,$(TESTS_CU),$(eval LIBS_$t := kvmem-attention))
$(foreach t,$(TESTS_FAKE_GPU),$(eval LIBS_$t := kvtgpufake kvt kvmem nettle))
$(foreach t,$(call tests_in,examples),$(eval LIBS_$t := kvmem.so))

PROGRAMS += $(TESTS_CRITERION) $(TESTS_PLAIN) $(call tests_in,helpers)
$(foreach t,$(TESTS_CRITERION) $(TESTS_PLAIN) $(call tests_in,helpers),$(eval SRC_$t := $t.c))
$(foreach t,$(TESTS_CU),$(eval SRC_$t := $t.cu))
$(foreach t,$(TESTS_FAKE_GPU),$(eval SRC_$t := $(patsubst tests/fake_gpu/%,tests/gpu/%,$t).c))

# A CUDA driver without a GPU, for the tests of the CUDA backend (support/fake_cuda/fake_cuda.h).
FAKE_CUDA         := $(B)/tests/fake_cuda/libcuda.so.1
FAKE_CUDA_OBJECTS := $(patsubst %,$(B)/obj/%.o,$(wildcard tests/support/fake_cuda/*.c))
$(FAKE_CUDA_OBJECTS): PIC := -fPIC -fvisibility=hidden
$(FAKE_CUDA): $(FAKE_CUDA_OBJECTS)
	$(call say,LINK)mkdir -p $(@D) && $(CC) -shared $(KV_LDFLAGS) $(LDFLAGS) \
	  -Wl,-soname,libcuda.so.1 -o $@ $^
$(addprefix $(B)/,$(TESTS_CRITERION) $(TESTS_PLAIN)): | $(FAKE_CUDA)
-include $(FAKE_CUDA_OBJECTS:.o=.d)

# Tests with time limits of their own, run one at a time after the others (a part of their path).
TESTS_ALONE :=
