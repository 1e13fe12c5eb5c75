# The directory core and everything under the API: one internal archive, for the library, the
# daemon and the tests. A .c file added to one of these folders is picked up by itself.
SRC_kvi := $(wildcard $(patsubst %,libkvmem/%/*.c,client directory backend wire util))

# The library's kernels, inside it as a fat binary (backend/kernels.h).
ifneq ($(NVCC),)
KERNELS := $(B)/obj/libkvmem/backend/kernels.fatbin
$(B)/obj/libkvmem/backend/kernels_image.c.o: $(KERNELS)
$(B)/obj/libkvmem/backend/kernels_image.c.o: INCLUDE += -DKVI_KERNELS_IMAGE='"$(KERNELS)"'
endif

# The library: the same objects and the public functions.
SRC_kvmem     := $(SRC_kvi) $(wildcard libkvmem/api/*.c)
MAP_kvmem     := libkvmem/libkvmem.map
LIBS_kvmem.so := nettle

ARCHIVES += kvi kvmem
SHARED   += kvmem

# Prints PROTOCOL.md from the message table.
PROGRAMS += bin/kvmem-protocol
SRC_bin/kvmem-protocol  := $(wildcard libkvmem/wire/gen/*.c)
LIBS_bin/kvmem-protocol := kvi nettle
