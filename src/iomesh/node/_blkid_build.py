"""The libblkid calls that iomesh needs: which filesystem, array member or partition table a device holds. Compiled by
meson.build."""

import sys

import cffi

builder = cffi.FFI()
builder.cdef("""
typedef struct blkid_struct_probe *blkid_probe;
blkid_probe blkid_new_probe(void);
void blkid_free_probe(blkid_probe);
int blkid_probe_set_device(blkid_probe, int fd, int64_t offset, int64_t bytes);
int blkid_probe_enable_superblocks(blkid_probe, int enable);
int blkid_probe_set_superblocks_flags(blkid_probe, int flags);
int blkid_probe_enable_partitions(blkid_probe, int enable);
int blkid_probe_set_partitions_flags(blkid_probe, int flags);
int blkid_do_safeprobe(blkid_probe);
int blkid_probe_numof_values(blkid_probe);
int blkid_probe_get_value(blkid_probe, int number, const char **name, const char **data, size_t *bytes);
#define BLKID_SUBLKS_TYPE ...
#define BLKID_SUBLKS_USAGE ...
#define BLKID_SUBLKS_LABEL ...
#define BLKID_SUBLKS_UUID ...
#define BLKID_SUBLKS_MAGIC ...
""")
builder.set_source("iomesh.node._blkid", "#include <blkid/blkid.h>")

if __name__ == "__main__":
    builder.emit_c_code(sys.argv[1])
