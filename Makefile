# kvmem builds with this one, non-recursive Makefile. Each folder's module.mk lists libraries
# and programs; the rules are all here. `make help` lists the targets.
#
#   MODE=release|debug|asan|tsan   CC=gcc|clang   WERROR=1   V=1
#   WITH_URING=0  WITH_CUDA=0      build as if liburing or nvcc were not installed
#   CUDA_ARCHS="80 90a"            GPUs that the attention kernels are built for (100: Blackwell)
#   BUILD=dir                      where everything goes (default: build)
#
# Layout: $(BUILD)/$(MODE)/obj, /lib, /bin, /tests, /bench.

VERSION   := $(shell sed -n 's/^.define KVMEM_VERSION_[MP][A-Z]* //p' include/kvmem/export.h | \
               paste -sd.)
SOVERSION := $(firstword $(subst ., ,$(VERSION)))

MODE   ?= release
BUILD  ?= build
V      ?= 0
JOBS   ?= $(shell nproc)
prefix ?= /usr/local
bindir ?= $(prefix)/bin
libdir ?= $(prefix)/lib
includedir ?= $(prefix)/include

B := $(BUILD)/$(MODE)
L := $(B)/lib
ifneq ($(filter default undefined,$(origin CC)),)
CC := gcc
endif
export CC
export KVMEM_MODE := $(MODE)
export KVMEM_BUILD_DIR := $(abspath $(B))

MAKEFLAGS += --no-builtin-rules --no-print-directory
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all

# Recipes start with $(call say,WORD): it prints the word and the target, or everything if V=1.
say = @$(if $(filter 0,$(V)),printf '  %-6s %s\n' $1 $(patsubst $(B)/%,%,$@);,set -x;)

# ---- Compiler flags -----------------------------------------------------------------------

FLAGS_release := -O2 -g
FLAGS_debug   := -O0 -g -DKVI_CHECK=2
FLAGS_asan    := -O1 -g -fno-omit-frame-pointer -DKVI_SANITIZE=1 \
                 -fsanitize=address,undefined -fno-sanitize-recover=all
FLAGS_tsan    := -O1 -g -fno-omit-frame-pointer -DKVI_SANITIZE=1 -fsanitize=thread
$(if $(FLAGS_$(MODE)),,$(error MODE=$(MODE): expected release, debug, asan or tsan))
SANITIZED := $(filter asan tsan,$(MODE))

WARNINGS := -Wall -Wextra -Wshadow -Wmissing-prototypes -Wstrict-prototypes
ifeq ($(WERROR),1)
WARNINGS += -Werror
endif
KV_CFLAGS := -std=c17 -D_GNU_SOURCE $(WARNINGS) $(FLAGS_$(MODE)) -pthread
KV_LDFLAGS := $(filter -fsanitize=%,$(FLAGS_$(MODE))) -pthread -Wl,--as-needed

# What each folder may include. attention/ sees the public headers only.
INCLUDE := -Iinclude -Ilibkvmem
$(B)/obj/attention/%.o: INCLUDE := -Iinclude
$(B)/obj/bench/%.o:     INCLUDE += -Ibench
$(B)/obj/bench/gpu/%.o $(B)/obj/bench/attention/%.o: INCLUDE += -Itests
$(B)/obj/tests/%.o:     INCLUDE += -Itests -Idaemon -Ibench
$(B)/obj/libkvmem/%.o $(B)/obj/attention/%.o: PIC := -fPIC -fvisibility=hidden

# Kernels for the CPU: loops over vectors must be unrolled whole. ThreadSanitizer does not know
# OpenMP's locks; clang may come without OpenMP.
$(B)/obj/attention/cpu/%.o: KV_CFLAGS += $(if $(filter release,$(MODE)),-O3) $(OPENMP)
ifneq ($(MODE),tsan)
OPENMP := $(shell echo 'int main(void) { return 0; }' | \
            $(CC) -fopenmp -xc -o /dev/null - 2>/dev/null && echo -fopenmp)
KV_LDFLAGS += $(OPENMP)
endif

# ---- External libraries -------------------------------------------------------------------
# This must parse on a machine without pkg-config: what is missing is an empty word here, and
# `make deps` (run first by demo and test, which then call make again) brings it.

EXTERNAL := criterion jemalloc libcjson liburing nettle
HAVE := $(shell for p in $(EXTERNAL); do pkg-config --exists $$p && echo $$p; done 2>/dev/null)
ifeq ($(WITH_URING),0)
HAVE := $(filter-out liburing,$(HAVE))
endif
PKG_CFLAGS := $(if $(HAVE),$(shell pkg-config --cflags $(HAVE)))
$(foreach p,$(HAVE),$(eval link_$p := $(shell pkg-config --libs $p)))
link_libm := -lm
ifdef SANITIZED
link_jemalloc := # sanitizers bring their own malloc, which jemalloc would hide
endif

ifneq ($(WITH_CUDA),0)
NVCC := $(shell command -v nvcc 2>/dev/null)
endif
# -O2 is the host code's; ptxas optimises by itself. PTX of the first architecture that later ones
# can run (not of 90a) is what cards newer than the listed ones compile when they load it.
CUDA_ARCHS ?= 80 90a
CUDA_PTX   := $(firstword $(filter-out %a %f,$(CUDA_ARCHS)))
NVCCFLAGS  := -std=c++17 -O2 -g -Xcompiler -fPIC,-fvisibility=hidden \
              $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$a,code=sm_$a) \
              $(foreach a,$(CUDA_PTX),-gencode arch=compute_$a,code=compute_$a)
ifeq ($(WERROR),1)
NVCCFLAGS += -Werror all-warnings
endif
FATBINFLAGS := -std=c++17 -O3 -gencode arch=compute_80,code=sm_80 \
               -gencode arch=compute_90,code=sm_90 -gencode arch=compute_80,code=compute_80
CUDA_LIBS = $(if $(NVCC),-L$(dir $(realpath $(NVCC)))../lib64 -lcudart_static -lstdc++ -ldl -lrt)
cuda_sources = $(if $(NVCC),$(wildcard $1))

# ---- What there is to build ---------------------------------------------------------------
# module.mk files set:
#   ARCHIVES += x      SRC_x, gives lib/libx.a
#   SHARED += x        SRC_x, LIBS_x.so, MAP_x (optional), gives lib/libx.so.VERSION
#   PROGRAMS += dir/x  SRC_dir/x, LIBS_dir/x, gives dir/x under $(B)
# LIBS_ words are archives, shared libraries (x.so) or names from EXTERNAL. A program whose
# external library is missing is left out, and `make` says so.

include libkvmem/module.mk attention/module.mk
-include swap/module.mk
include daemon/module.mk bench/module.mk tests/module.mk

object   = $(patsubst %,$(B)/obj/%.o,$1)
missing  = $(filter-out $(HAVE),$(filter $(EXTERNAL),$(LIBS_$1)))
with_cu  = $(if $(filter %.cu,$1),$(CUDA_LIBS))
link     = $(foreach l,$1,$(link_$l))
built_by = $(filter $(B)/%,$(call link,$1))
PROGRAMS := $(foreach p,$(PROGRAMS),$(if $(SRC_$p),$p))
LEFT_OUT := $(foreach p,$(PROGRAMS),$(if $(call missing,$p),$p))
PROGRAMS := $(filter-out $(LEFT_OUT),$(PROGRAMS))
ARCHIVES := $(foreach a,$(ARCHIVES),$(if $(SRC_$a),$a))
SHARED   := $(foreach s,$(SHARED),$(if $(SRC_$s),$s))
OBJECTS  := $(call object,$(sort $(foreach x,$(ARCHIVES) $(SHARED) $(PROGRAMS),$(SRC_$x))))
$(foreach a,$(ARCHIVES),$(eval link_$a := $(L)/lib$a.a $(call with_cu,$(SRC_$a)) -lm))
$(foreach s,$(SHARED),$(eval link_$s.so := $(L)/lib$s.so))

$(B)/obj/%.c.o: %.c $(B)/flags | check-deps
	$(call say,CC)mkdir -p $(@D) && $(CC) $(KV_CFLAGS) $(PIC) $(INCLUDE) $(PKG_CFLAGS) \
	  $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(B)/obj/%.cu.o: %.cu $(B)/flags
	$(call say,NVCC)mkdir -p $(@D) && $(NVCC) $(NVCCFLAGS) $(INCLUDE) -MMD -MP -MF $(@:.o=.d) \
	  -c -o $@ $<

# Kernels that are loaded by the driver API: no host code, no runtime.
$(B)/obj/%.fatbin: %.cu $(B)/flags
	$(call say,NVCC)mkdir -p $(@D) && $(NVCC) $(FATBINFLAGS) $(INCLUDE) -MMD -MP -MF $@.d \
	  -fatbin -o $@ $<
-include $(wildcard $(patsubst %,$(B)/obj/%/*.fatbin.d,libkvmem/backend tests/support/lab))

# ar q, not r: members of the same name from two folders are both kept.
define archive_rule
$(L)/lib$1.a: $(call object,$(SRC_$1)) $(B)/obj/$1.list
	$$(call say,AR)mkdir -p $$(@D) && rm -f $$@ && ar qcs $$@ $$(filter %.o,$$^)
$(B)/obj/$1.list: NOW = $(SRC_$1)
endef

# Clang does not link sanitizer runtimes into shared libraries, so -z defs is for the others.
define shared_rule
$(L)/lib$1.so.$(VERSION): $(call object,$(SRC_$1)) $(B)/obj/$1.list $(MAP_$1) \
                         $(call built_by,$(LIBS_$1.so))
	$$(call say,LINK)mkdir -p $$(@D) && $$(CC) -shared $(KV_LDFLAGS) $(LDFLAGS) \
	  $(if $(SANITIZED),,-Wl$(comma)-z$(comma)defs) -Wl,-soname,lib$1.so.$(SOVERSION) \
	  $(if $(MAP_$1),-Wl$(comma)--version-script=$(MAP_$1)) -o $$@ $$(filter %.o,$$^) \
	  $(call link,$(LIBS_$1.so)) $(call with_cu,$(SRC_$1))
$(L)/lib$1.so.$(SOVERSION): $(L)/lib$1.so.$(VERSION)
	@ln -sf $$(<F) $$@
$(L)/lib$1.so: $(L)/lib$1.so.$(SOVERSION)
	@ln -sf $$(<F) $$@
endef
comma := ,

# Programs find our shared libraries beside them: bin/x in ../lib, tests/group/x in ../../lib.
top       = $(firstword $(subst /, ,$1))
up_bin   := ..
up_bench := ..
up_tests := ../..
define program_rule
$(B)/$1: $(call object,$(SRC_$1)) $(call built_by,$(LIBS_$1))
	$$(call say,LINK)mkdir -p $$(@D) && $$(CC) $(KV_LDFLAGS) $(LDFLAGS) -o $$@ \
	  $$(filter %.o,$$^) $(call link,$(LIBS_$1)) $(call with_cu,$(SRC_$1)) \
	  $(if $(filter %.so,$(LIBS_$1)),'-Wl$(comma)-rpath$(comma)$$$$ORIGIN/$(up_$(call top,$1))/lib')
endef

$(foreach a,$(ARCHIVES),$(eval $(call archive_rule,$a)))
$(foreach s,$(SHARED),$(eval $(call shared_rule,$s)))
$(foreach p,$(PROGRAMS),$(eval $(call program_rule,$p)))

# Other flags, other objects; another list of sources, another library (a removed file must not
# live on in it). These files are rewritten only when what they hold changes.
$(B)/flags: NOW = $(CC) $(KV_CFLAGS) $(CPPFLAGS) $(CFLAGS) $(KV_LDFLAGS) $(LDFLAGS) $(HAVE) $(NVCC) \
                $(NVCCFLAGS)
$(B)/flags $(patsubst %,$(B)/obj/%.list,$(ARCHIVES)): FORCE
	@mkdir -p $(@D); echo '$(NOW)' | cmp -s - $@ || echo '$(NOW)' > $@
FORCE:

-include $(OBJECTS:.o=.d)

# ---- Targets ------------------------------------------------------------------------------

SUBMAKE         = +@$(MAKE) $(if $(filter --jobserver%,$(MAKEFLAGS)),,-j$(JOBS))
LIBRARIES      := $(foreach s,$(SHARED),$(L)/lib$s.so) $(foreach s,$(SHARED),$(L)/lib$s.a)
BINARIES       := $(addprefix $(B)/,$(filter bin/%,$(PROGRAMS)))
TEST_PROGRAMS  := $(addprefix $(B)/,$(filter tests/%,$(PROGRAMS)))
BENCH_PROGRAMS := $(addprefix $(B)/,$(filter bench/%,$(filter-out bench/gpu/%,$(PROGRAMS))))
GPU_TESTS      := $(addprefix $(B)/,$(filter tests/gpu/%,$(PROGRAMS)))
GPU_BENCHES    := $(addprefix $(B)/,$(filter $(BENCHES_GPU) $(if $(NVCC),bench/attention),$(PROGRAMS)))

.PHONY: all everything lib left-out demo test test-asan test-tsan bench record run-demo run-tests \
        run-bench test-gpu bench-gpu record-gpu gpu-programs gpu-kit run-test-gpu run-bench-gpu \
        run-record-gpu deps check-deps check-format check-headers check-symbols check-protocol format \
        docs install uninstall help clean FORCE

all: lib $(BINARIES) left-out ## Build the libraries and programs (the default)

everything: all $(TEST_PROGRAMS) $(BENCH_PROGRAMS) $(GPU_BENCHES) ## Build tests and benchmarks too

lib: $(LIBRARIES) ## Build libkvmem and libkvmem-attention, shared and static

left-out:
	@$(foreach p,$(filter bin/%,$(LEFT_OUT)),echo '$(notdir $p) is not built: no' \
	  '$(call missing,$p) here; "make deps" installs what is missing';):

demo: deps ## Show it working: daemon, two engines, a kill, a picture (under a minute)
	$(SUBMAKE) run-demo

test: deps ## Build and run all tests (T=word runs those whose path contains it)
	$(SUBMAKE) run-tests

test-asan: deps ## The tests with address and undefined-behaviour sanitizers
	$(SUBMAKE) run-tests MODE=asan

test-tsan: deps ## The threaded tests with the thread sanitizer
	$(SUBMAKE) run-tests MODE=tsan

bench: deps ## Run the benchmarks, one JSON line each (T=word picks some)
	$(SUBMAKE) run-bench

record: deps ## The same, also appended to bench/results/host.jsonl with date and revision
	@mkdir -p bench/results
	@$(MAKE) run-bench | python3 bench/record.py

test-gpu: deps ## The tests that need a GPU, one at a time (they skip without one)
	$(SUBMAKE) run-test-gpu

bench-gpu: deps ## The benchmarks on a GPU, one JSON line a row
	$(SUBMAKE) run-bench-gpu

record-gpu: deps ## The same, also appended to bench/results/h200.jsonl with driver and clocks
	$(SUBMAKE) run-record-gpu

run-demo: all
	@bash bench/demo.sh

run-tests: all $(TEST_PROGRAMS)
	@python3 tests/support/run.py --logs $(B)/test-logs --limit $(if $(SANITIZED),600,240) \
	  $(if $(T),--only '$(T)') \
	  $(patsubst %,criterion:$(B)/%,$(filter $(PROGRAMS),$(TESTS_CRITERION))) \
	  $(patsubst %,plain:$(B)/%,$(filter $(PROGRAMS),$(TESTS_PLAIN))) \
	  $(patsubst %,plain:%,$(TESTS_SCRIPT)) $(patsubst %,absent:%,$(filter tests/%,$(LEFT_OUT))) \
	  $(patsubst %,--alone %,$(TESTS_ALONE))

run-bench: all $(BENCH_PROGRAMS)
	@rc=0; for b in $(BENCH_PROGRAMS) $(BENCH_SCRIPTS); do \
	  case $$b in *'$(T)'*) $$b || { echo "$$b failed" >&2; rc=1; };; esac; done; exit $$rc

# The scripts run what is built, and work as well where nothing can be built: on a machine to which
# $(B)/bin, $(B)/tests/gpu, $(B)/bench/gpu and this folder's scripts were taken.
gpu-programs: $(BINARIES) $(GPU_TESTS) $(GPU_BENCHES) ## Build what test-gpu and bench-gpu run

# Everything that must be taken to a machine with a GPU and without our libraries.
gpu-kit: gpu-programs ## The same, and the external libraries beside them, to be run elsewhere
	@bash tests/support/gpu_kit.sh $(L)/external $(BINARIES) $(GPU_TESTS) $(GPU_BENCHES)

run-test-gpu: gpu-programs
	@bash tests/support/gpu.sh $(T) || [ $$? -eq 77 ]

run-bench-gpu: gpu-programs
	@bash bench/gpu/run.sh $(T) || [ $$? -eq 77 ]

run-record-gpu: gpu-programs
	@bash bench/gpu/run.sh $(T) | python3 bench/record.py --gpu

deps: ## Install what is missing (as root or with password-less sudo), or say how to
	@bash tests/support/deps.sh install build test

# Before any compilation: a clear message instead of a missing header.
check-deps:
	@bash tests/support/deps.sh check build

FOLDERS = $(wildcard include libkvmem attention daemon swap bench tests)
C_FILES = $(shell find $(FOLDERS) -name '*.[ch]')

check-format: ## Compare the layout of all C files with .clang-format
	@bash tests/support/deps.sh check format
	@clang-format --dry-run -Werror $(C_FILES)

format: ## Lay out all C files with clang-format
	@bash tests/support/deps.sh check format
	@clang-format -i $(C_FILES)

check-headers: ## Each public header alone, as C11 and as C++17
	@bash tests/abi/headers.sh

check-symbols: lib ## The exported functions are those of libkvmem.map
	@bash tests/abi/symbols.sh

check-protocol: all ## PROTOCOL.md is what the message table says
	@bash tests/abi/protocol.sh

docs: all ## Write libkvmem/wire/PROTOCOL.md from the message table
	@$(B)/bin/kvmem-protocol > libkvmem/wire/PROTOCOL.md.new
	@mv libkvmem/wire/PROTOCOL.md.new libkvmem/wire/PROTOCOL.md

INSTALLED := $(filter bin/kvmemd bin/kvmemctl bin/kvmem-replay,$(PROGRAMS))
HEADERS   := $(patsubst include/%,%,$(wildcard include/*.h include/*/*.h))

install: all ## Install below DESTDIR/prefix, with a pkg-config file
	install -d $(DESTDIR)$(bindir) $(DESTDIR)$(libdir)/pkgconfig
	$(if $(INSTALLED),install $(addprefix $(B)/,$(INSTALLED)) $(DESTDIR)$(bindir))
	install -m 644 $(filter %.a,$(LIBRARIES)) $(DESTDIR)$(libdir)
	cp -P $(foreach s,$(SHARED),$(addprefix $(L)/lib$s.so,.$(VERSION) .$(SOVERSION) '')) \
	  $(DESTDIR)$(libdir)
	for h in $(HEADERS); do install -D -m 644 include/$$h $(DESTDIR)$(includedir)/$$h; done
	sed -e 's|@prefix@|$(prefix)|; s|@libdir@|$(libdir)|; s|@includedir@|$(includedir)|' \
	    -e 's|@version@|$(VERSION)|' libkvmem/kvmem.pc.in > $(DESTDIR)$(libdir)/pkgconfig/kvmem.pc

uninstall: ## Remove what install put there
	rm -f $(patsubst bin/%,$(DESTDIR)$(bindir)/%,$(INSTALLED))
	rm -f $(patsubst %.a,$(DESTDIR)$(libdir)/%.*,$(notdir $(filter %.a,$(LIBRARIES))))
	rm -f $(DESTDIR)$(libdir)/pkgconfig/kvmem.pc $(addprefix $(DESTDIR)$(includedir)/,$(HEADERS))
	-rmdir $(DESTDIR)$(includedir)/kvmem

help: ## This list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | \
	  awk -F'|' '{ printf "%-17s %s\n", $$1, $$2 }'

clean: ## Remove the build folder
	rm -rf $(BUILD)
