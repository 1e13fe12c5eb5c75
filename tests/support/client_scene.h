/* SPDX-License-Identifier: Apache-2.0
 *
 * A client with one small space, against a scripted daemon: what most tests of what it says begin
 * with. What does not come out as expected is death.
 */
#ifndef KVT_CLIENT_SCENE_H
#define KVT_CLIENT_SCENE_H

#include "support/scripted.h"

#define KVT_SCENE_BYTES (64u * 4096u) /* of the device: 64 segments of 4 blocks of 4 tokens */

struct kvt_scene {
    struct kvt_script *script;
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_geometry geometry;
    uint32_t fds;
};

extern const struct kvmem_name kvt_scene_names[16];

void kvt_scene_begin(struct kvt_scene *s);
/* Nothing of it stays open. */
void kvt_scene_end(struct kvt_scene *s);

/* kvmem_client_dispatch, which returns `expected`, and the client's check. */
void kvt_scene_dispatch(struct kvt_scene *s, int expected);
/* The serial of the next request for blocks. */
uint32_t kvt_scene_requested(struct kvt_scene *s);
/* Two segments, slots 0 and 1: 8 blocks. */
void kvt_scene_get_blocks(struct kvt_scene *s);
/* A sequence with so many committed tokens. */
struct kvmem_seq kvt_scene_seq(struct kvt_scene *s, uint32_t tokens);
struct kvmem_space_stats kvt_scene_stats(struct kvt_scene *s);
struct kvmem_capacity kvt_scene_capacity(struct kvt_scene *s);

/* Serials count up by one: what the n-th call from now will have. */
uint32_t kvt_scene_coming(struct kvt_scene *s, uint32_t n);
/* An answer to a look-up: these blocks. */
void kvt_scene_push_hits(struct kvt_scene *s, uint32_t serial, uint32_t count,
                         const uint32_t *indices, uint32_t generation);
/* An answer to segment_map: a new segment there. */
void kvt_scene_push_fds(struct kvt_scene *s, uint32_t serial, uint32_t slot, uint32_t generation);

#endif
