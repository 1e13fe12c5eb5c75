# Each .c file in a folder of tests is a program of its own; a file added there is picked up by
# itself. All are linked with tests/support and with the static library, internals included.
#
#   unit model wire fault ipc   Criterion; unit/test_ctl_* are linked with kvmemctl's code as well
#   daemon                      Criterion, linked with the daemon's own code as well
#   tsan                        plain main(), since Criterion does not run under ThreadSanitizer
#   helpers                     plain main(), started by tests: $KVMEM_BUILD_DIR/tests/helpers/x
#   examples                    plain main(), linked with libkvmem.so as a user would
#   gpu                         plain main() that needs no library but libc: on the machine with
#                               the GPU it is run as it was built here; without a GPU it skips
#   scripts abi                 shell and Python, run as they are (they need their x bit)
#
# A plain program or a script passes with exit status 0; 77 means skipped, its last line says
# why. A helper that dies of SIGSEGV on purpose must say so to the address sanitizer:
# const char *__asan_default_options(void) { return "handle_segv=0"; }
SRC_kvt  := $(wildcard tests/support/*.c)
ARCHIVES += kvt

tests_in = $(patsubst %.c,%,$(wildcard $(patsubst %,tests/%/*.c,$1)))
INSIDE  := kvt kvb kvmem kvmem-attention nettle libcjson

TESTS_CRITERION := $(call tests_in,unit model wire fault ipc daemon)
TESTS_PLAIN     := $(call tests_in,tsan examples gpu)
TESTS_SCRIPT    := $(wildcard $(foreach s,sh py,tests/scripts/*.$s tests/abi/*.$s))
ifeq ($(MODE),asan)
TESTS_SCRIPT    := $(filter-out tests/abi/% tests/scripts/runner.sh,$(TESTS_SCRIPT))
endif
ifeq ($(MODE),tsan)
TESTS_CRITERION :=
TESTS_SCRIPT    :=
TESTS_PLAIN     := $(call tests_in,tsan)
endif

$(foreach t,$(TESTS_CRITERION),$(eval LIBS_$t := $(INSIDE) criterion))
$(foreach t,$(filter tests/unit/test_ctl_%,$(TESTS_CRITERION)),\
  $(eval LIBS_$t := kvctl $(INSIDE) criterion))
$(foreach t,$(call tests_in,daemon),$(eval LIBS_$t := kvt kvd $(INSIDE) liburing jemalloc criterion))
$(foreach t,$(call tests_in,tsan helpers),$(eval LIBS_$t := $(INSIDE)))
LIBS_tests/tsan/devices := kvt kvd $(INSIDE) liburing jemalloc
$(foreach t,$(call tests_in,gpu),$(eval LIBS_$t := kvt kvmem))
$(foreach t,$(call tests_in,examples),$(eval LIBS_$t := kvmem.so))

PROGRAMS += $(TESTS_CRITERION) $(TESTS_PLAIN) $(call tests_in,helpers)
$(foreach t,$(TESTS_CRITERION) $(TESTS_PLAIN) $(call tests_in,helpers),$(eval SRC_$t := $t.c))

# A CUDA driver without a GPU, for the tests of the CUDA backend (support/fake_cuda/fake_cuda.h).
FAKE_CUDA         := $(B)/tests/fake_cuda/libcuda.so.1
FAKE_CUDA_OBJECTS := $(patsubst %,$(B)/obj/%.o,$(wildcard tests/support/fake_cuda/*.c))
$(FAKE_CUDA_OBJECTS): PIC := -fPIC -fvisibility=hidden
$(FAKE_CUDA): $(FAKE_CUDA_OBJECTS)
	$(call say,LINK)mkdir -p $(@D) && $(CC) -shared $(KV_LDFLAGS) $(LDFLAGS) \
	  -Wl,-soname,libcuda.so.1 -o $@ $^
$(patsubst %,$(B)/tests/%,unit/test_backend_cuda unit/test_backend_cuda_failures \
  unit/test_cuda_driver unit/test_devices unit/test_fence_cuda daemon/test_device \
  ipc/test_daemon_cuda tsan/devices): | $(FAKE_CUDA)
-include $(FAKE_CUDA_OBJECTS:.o=.d)

# Tests with time limits of their own, run one at a time after the others (a part of their path).
TESTS_ALONE :=
