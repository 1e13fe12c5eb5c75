/* SPDX-License-Identifier: Apache-2.0
 *
 * See scripted.h.
 */
#include "support/scripted.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/backend_host.h"
#include "util/error.h"
#include "util/geometry.h"

static void must(int ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "scripted: %s: %s\n", what, kvmem_error_detail()->text);
    abort();
}

static struct kvt_script *of(const struct kvi_link *link)
{
    return (struct kvt_script *)(uintptr_t)link;
}

/* ---- to the client ---- */

void kvt_script_push_bytes(struct kvt_script *script, const void *bytes, size_t byte_count)
{
    struct kvt_script_message *m = &script->in[script->in_head++ % KVT_SCRIPT_MESSAGES];

    must(script->in_head - script->in_tail <= KVT_SCRIPT_MESSAGES, "too many messages");
    m->bytes = malloc(byte_count);
    m->byte_count = byte_count;
    m->fd_count = 0;
    memcpy(m->bytes, bytes, byte_count);
}

void kvt_script_push(struct kvt_script *script, void *message, const int *fds, uint32_t fd_count)
{
    struct kvi_header *header = message;
    struct kvt_script_message *m = &script->in[script->in_head % KVT_SCRIPT_MESSAGES];

    header->fds_received = fd_count;
    kvt_script_push_bytes(script, message, kvi_wire_finish(message));
    if (fd_count)
        memcpy(m->fds, fds, fd_count * sizeof(*fds));
    m->fd_count = fd_count;
}

void kvt_script_error(struct kvt_script *script, uint32_t serial, uint32_t opcode, int code)
{
    struct kvi_msg_error error;

    kvi_wire_begin(&error, KVI_OP_ERROR, serial);
    error.code = code;
    error.opcode = opcode;
    strcpy(error.text, "scripted");
    kvt_script_push(script, &error, NULL, 0);
}

static void push_done(struct kvt_script *script, const struct kvi_header *request)
{
    struct kvi_msg_done done;

    kvi_wire_begin(&done, KVI_OP_DONE, request->serial);
    done.opcode = request->opcode;
    kvt_script_push(script, &done, NULL, 0);
}

static void push_welcome(struct kvt_script *script, const struct kvi_header *request)
{
    struct kvi_msg_welcome welcome;
    int fd = memfd_create("status", MFD_CLOEXEC);

    must(fd >= 0 && !ftruncate(fd, 65536), "status page");
    kvi_wire_begin(&welcome, KVI_OP_WELCOME, request->serial);
    welcome.version = script->welcome_version;
    welcome.version_min = 1;
    welcome.client = 3;
    welcome.device_count = script->welcome_devices;
    welcome.device_bytes = script->device_bytes;
    welcome.granule_bytes = script->granule_bytes;
    welcome.status_bytes = 65536;
    strcpy(welcome.device, script->welcome_device);
    kvt_script_push(script, &welcome, &fd, 1);
}

static void push_opened(struct kvt_script *script, const struct kvi_msg_space_open *request)
{
    const struct kvi_rec_group *row = kvi_wire_tail_const(request, 0);
    struct kvmem_group_options group = {row->layer_count,
                                        row->kv_head_count,
                                        row->head_dim_k,
                                        row->head_dim_v,
                                        row->dtype_k,
                                        row->dtype_v,
                                        row->scale_mode,
                                        row->scale_dtype,
                                        0,
                                        0};
    struct kvi_geometry_input input = {.layout = request->layout,
                                       .flags = request->flags & KVI_SPACE_REGIONS,
                                       .block_tokens = request->block_tokens,
                                       .group = &group,
                                       .device_bytes = script->device_bytes,
                                       .granule_bytes = script->granule_bytes};
    struct kvmem_geometry plan;
    struct kvi_msg_space_opened opened;

    must(!kvi_geometry_plan(&input, &plan), "geometry");
    kvi_wire_begin(&opened, KVI_OP_SPACE_OPENED, request->header.serial);
    opened.space = 7 + script->spaces++;
    opened.blocks_per_segment = plan.blocks_per_segment;
    opened.segment_bytes = plan.segment_bytes;
    opened.index_stride_bytes = plan.index_stride_bytes;
    opened.segment_limit = plan.segment_limit;
    opened.device = request->flags >> 8 ? (request->flags >> 8) - 1 : script->opens_on;
    kvt_script_push(script, &opened, NULL, 0);
}

static void push_published(struct kvt_script *script, const struct kvi_msg_publish *request)
{
    static _Alignas(8) char space[KVI_MESSAGE_BYTES];
    struct kvi_msg_publish_reply *reply = (void *)space;
    struct kvi_rec_state *rows;

    kvi_wire_begin(reply, KVI_OP_PUBLISH_REPLY, request->header.serial);
    reply->space = request->space;
    reply->record_count = request->record_count;
    rows = kvi_wire_tail(reply, 0);
    for (uint32_t i = 0; i < request->record_count; i++)
        rows[i].state = script->publish_state;
    kvt_script_push(script, reply, NULL, 0);
}

static struct kvt_script_timeline *find_timeline(struct kvt_script *script, uint32_t timeline)
{
    struct kvt_script_timeline *one = script->timelines;

    while (one && one->timeline != timeline)
        one = one->next;
    return one;
}

struct kvi_lane *kvt_script_timeline(struct kvt_script *script, uint32_t timeline)
{
    struct kvt_script_timeline *one = calloc(1, sizeof(*one));

    must(one != NULL, "memory");
    one->timeline = timeline;
    one->fd = memfd_create("timeline", MFD_CLOEXEC);
    must(one->fd >= 0 && !ftruncate(one->fd, sysconf(_SC_PAGESIZE)), "timeline page");
    one->lanes = mmap(NULL, KVI_TIMELINE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, one->fd, 0);
    must(one->lanes != MAP_FAILED, "timeline page");
    one->next = script->timelines;
    script->timelines = one;
    return one->lanes;
}

static void push_timeline(struct kvt_script *script, const struct kvi_msg_timeline_map *request)
{
    uint32_t timeline = request->is_own ? KVT_SCRIPT_OWN : request->timeline & ~63u;
    struct kvi_msg_timeline_fd reply;
    int fd;

    if (request->is_own && !find_timeline(script, timeline))
        kvt_script_timeline(script, timeline);
    if (!find_timeline(script, timeline)) {
        kvt_script_error(script, request->header.serial, KVI_OP_TIMELINE_MAP, KVMEM_E_NOT_FOUND);
        return;
    }
    kvi_wire_begin(&reply, KVI_OP_TIMELINE_FD, request->header.serial);
    reply.timeline = timeline;
    reply.client = request->is_own ? 3 : 4;
    fd = dup(find_timeline(script, timeline)->fd);
    kvt_script_push(script, &reply, &fd, 1);
    script->timelines_sent++;
}

int kvt_script_segment_fd(struct kvt_script *script, uint64_t bytes)
{
    struct kvi_phys phys;
    int fd = -1;

    must(!kvi_backend_segment_create(script->backend, bytes, &phys), "segment");
    must(!kvi_backend_segment_export(script->backend, phys, &fd), "export");
    return fd;
}

void kvt_script_grant(struct kvt_script *script, const struct kvmem_geometry *geometry,
                      uint32_t serial, uint32_t slot, uint32_t count, uint32_t flags)
{
    _Alignas(8) char space[4096];
    struct kvi_msg_grant *grant = (void *)space;
    struct kvi_rec_segment_grant *segments;
    struct kvi_rec_block_range *ranges;
    int fds[KVI_MESSAGE_FDS];

    kvi_wire_begin(grant, KVI_OP_GRANT, serial);
    grant->space = 7;
    grant->flags = flags;
    grant->obtainable_blocks = 5;
    grant->segment_count = count;
    grant->range_count = count ? 1 : 0;
    segments = kvi_wire_tail(grant, 0);
    for (uint32_t i = 0; i < count; i++) {
        memset(&segments[i], 0, sizeof(segments[i]));
        segments[i].slot = slot + i;
        segments[i].generation = 1;
        segments[i].flags = KVI_SEGMENT_HAS_FD;
        fds[i] = kvt_script_segment_fd(script, geometry->segment_bytes);
    }
    ranges = kvi_wire_tail(grant, 1);
    if (count) {
        ranges->first = slot * geometry->blocks_per_segment;
        ranges->count = count * geometry->blocks_per_segment;
    }
    kvt_script_push(script, grant, fds, count);
}

/* ---- from the client ---- */

static bool answer(struct kvt_script *script, const void *message)
{
    const struct kvi_header *header = message;

    if (script->is_mute)
        return false;
    if (script->answer && script->answer(script, message))
        return true;
    switch (header->opcode) {
    case KVI_OP_HELLO: push_welcome(script, header); return true;
    case KVI_OP_SPACE_OPEN: push_opened(script, message); return true;
    case KVI_OP_TIMELINE_MAP: push_timeline(script, message); return true;
    case KVI_OP_SPACE_CLOSE:
    case KVI_OP_GOODBYE:
    case KVI_OP_UNPIN: push_done(script, header); return false;
    case KVI_OP_PUBLISH:
        if (!script->holds_publish)
            push_published(script, message);
        return false;
    default: return false;
    }
}

static int script_send(struct kvi_link *link, const void *message, int64_t timeout_ns)
{
    struct kvt_script *script = of(link);
    const struct kvi_header *header = message;
    struct kvt_script_message *m;
    char text[160];

    (void)timeout_ns;
    if (script->send_code)
        return kvi_error_set(script->send_code, "scripted");
    must(!kvi_wire_check(message, header->length_bytes, 0, KVI_TO_DAEMON, text, sizeof(text)),
         text);
    script->last_fds_received = header->fds_received;
    if (answer(script, message))
        return 0;
    m = &script->out[script->out_head++ % KVT_SCRIPT_MESSAGES];
    must(script->out_head - script->out_tail <= KVT_SCRIPT_MESSAGES, "too many messages");
    free(m->bytes);
    m->bytes = malloc(header->length_bytes);
    memcpy(m->bytes, message, header->length_bytes);
    return 0;
}

static int script_receive(struct kvi_link *link, void *buffer, size_t limit, int *fds,
                          uint32_t *fd_count, int64_t timeout_ns)
{
    struct kvt_script *script = of(link);
    struct kvt_script_message *m;

    *fd_count = 0;
    if (script->in_tail == script->in_head) {
        if (script->receive_code)
            return kvi_error_set(script->receive_code, "scripted");
        if (timeout_ns > 0)
            usleep((useconds_t)(timeout_ns / 1000));
        return 0;
    }
    m = &script->in[script->in_tail++ % KVT_SCRIPT_MESSAGES];
    must(m->byte_count <= limit, "message fits");
    memcpy(buffer, m->bytes, m->byte_count);
    memcpy(fds, m->fds, m->fd_count * sizeof(*fds));
    *fd_count = m->fd_count;
    free(m->bytes);
    m->bytes = NULL;
    return 1;
}

static int script_poll_fd(const struct kvi_link *link)
{
    (void)link;
    return -1;
}

static void script_close(struct kvi_link *link)
{
    of(link)->is_closed = true;
}

const void *kvt_script_next(struct kvt_script *script)
{
    if (script->out_tail == script->out_head)
        return NULL;
    return script->out[script->out_tail++ % KVT_SCRIPT_MESSAGES].bytes;
}

const void *kvt_script_find(struct kvt_script *script, enum kvi_opcode opcode)
{
    const struct kvi_header *header;

    while ((header = kvt_script_next(script)))
        if (header->opcode == (uint32_t)opcode)
            return header;
    return NULL;
}

/* ---- beginning and end ---- */

struct kvt_script *kvt_script_create(uint64_t device_bytes, uint64_t granule_bytes)
{
    static const struct kvi_link_ops ops = {script_send, script_receive, script_poll_fd,
                                            script_close};
    struct kvi_backend_host_options options = {.options_bytes = sizeof(options),
                                               .device_bytes = device_bytes,
                                               .granule_bytes = granule_bytes};
    struct kvt_script *script = calloc(1, sizeof(*script));

    must(script != NULL, "memory");
    script->base.ops = &ops;
    script->device_bytes = device_bytes;
    script->granule_bytes = granule_bytes;
    script->welcome_version = KVI_PROTOCOL_VERSION;
    script->welcome_device = "host";
    script->welcome_devices = 1;
    must(!kvi_backend_host_create(&options, &script->backend), "backend");
    return script;
}

void kvt_script_destroy(struct kvt_script *script)
{
    for (; script->in_tail != script->in_head; script->in_tail++) {
        struct kvt_script_message *m = &script->in[script->in_tail % KVT_SCRIPT_MESSAGES];

        for (uint32_t i = 0; i < m->fd_count; i++)
            close(m->fds[i]);
        free(m->bytes);
    }
    for (uint32_t i = 0; i < KVT_SCRIPT_MESSAGES; i++)
        free(script->out[i].bytes);
    while (script->timelines) {
        struct kvt_script_timeline *one = script->timelines;

        script->timelines = one->next;
        munmap(one->lanes, KVI_TIMELINE_BYTES);
        close(one->fd);
        free(one);
    }
    kvi_backend_destroy(script->backend);
    free(script);
}

struct kvmem_client *kvt_script_client(struct kvt_script *script)
{
    struct kvi_client_options options = {.timeout_ns = 20000000, .outbox_records = 1024};
    struct kvmem_client *client = NULL;

    must(!kvi_client_create(&script->base, &kvi_alloc_libc, &options, &client), "client");
    return client;
}

struct kvmem_space_options kvt_small_space(const char *name)
{
    struct kvmem_space_options options = {.size = sizeof(options),
                                          .name = name,
                                          .block_tokens = 4,
                                          .group_count = 1,
                                          .shard_count = 1,
                                          .low_water_blocks = 4,
                                          .refill_blocks = 8};

    options.groups[0] = (struct kvmem_group_options){.layer_count = 1,
                                                     .kv_head_count = 1,
                                                     .head_dim_k = 64,
                                                     .head_dim_v = 64,
                                                     .dtype_k = KVMEM_DTYPE_BF16,
                                                     .dtype_v = KVMEM_DTYPE_BF16};
    return options;
}

/* ---- memory ---- */

static void *memory_allocate(void *context, size_t bytes)
{
    struct kvt_memory *memory = context;
    void *block;

    memory->calls++;
    if (memory->fail_at && --memory->fail_at == 0) {
        memory->failed++;
        return NULL;
    }
    block = kvi_alloc_libc.allocate(NULL, bytes);
    memory->live += block != NULL;
    return block;
}

static void memory_release(void *context, void *block, size_t bytes)
{
    struct kvt_memory *memory = context;

    memory->live--;
    kvi_alloc_libc.release(NULL, block, bytes);
}

void kvt_memory_init(struct kvt_memory *memory)
{
    memset(memory, 0, sizeof(*memory));
    memory->alloc = (struct kvi_alloc){memory, memory_allocate, memory_release};
}

uint32_t kvt_open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    uint32_t count = 0;

    must(dir != NULL, "/proc/self/fd");
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}
