# kvmemd. All but main() is an archive, so that tests/daemon can call it.
SRC_kvd  := $(filter-out daemon/main.c,$(wildcard daemon/*.c))
ARCHIVES += kvd

PROGRAMS += bin/kvmemd
SRC_bin/kvmemd  := $(wildcard daemon/main.c)
LIBS_bin/kvmemd := kvd kvmem nettle liburing jemalloc

# kvmemctl
PROGRAMS += bin/kvmemctl
SRC_bin/kvmemctl  := $(wildcard daemon/ctl/*.c)
LIBS_bin/kvmemctl := kvi nettle libcjson
