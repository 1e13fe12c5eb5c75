# kvmemd. All but main() is an archive, so that tests/daemon can call it.
SRC_kvd  := $(filter-out daemon/main.c,$(wildcard daemon/*.c))
ARCHIVES += kvd

PROGRAMS += bin/kvmemd
SRC_bin/kvmemd  := $(wildcard daemon/main.c)
LIBS_bin/kvmemd := kvd kvmem nettle liburing jemalloc

# kvmemctl. All but main() is an archive too, for tests/unit/test_ctl_*.
SRC_kvctl := $(filter-out daemon/ctl/main.c,$(wildcard daemon/ctl/*.c))
ARCHIVES  += kvctl

PROGRAMS += bin/kvmemctl
SRC_bin/kvmemctl  := daemon/ctl/main.c
LIBS_bin/kvmemctl := kvctl kvi nettle libcjson
