# Each .c file in a folder of tests is a program of its own; a file added there is picked up by
# itself. All are linked with tests/support and with the static library, internals included.
#
#   unit model wire fault ipc   Criterion; unit/test_ctl_* are linked with kvmemctl's code as well
#   daemon                      Criterion, linked with the daemon's own code as well
#   tsan                        plain main(), since Criterion does not run under ThreadSanitizer
#   helpers                     plain main(), started by tests: $KVMEM_BUILD_DIR/tests/helpers/x
#   examples                    plain main(), linked with libkvmem.so as a user would
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
TESTS_PLAIN     := $(call tests_in,tsan examples)
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
$(foreach t,$(call tests_in,examples),$(eval LIBS_$t := kvmem.so))

PROGRAMS += $(TESTS_CRITERION) $(TESTS_PLAIN) $(call tests_in,helpers)
$(foreach t,$(TESTS_CRITERION) $(TESTS_PLAIN) $(call tests_in,helpers),$(eval SRC_$t := $t.c))

# Tests with time limits of their own, run one at a time after the others (a part of their path).
TESTS_ALONE :=
