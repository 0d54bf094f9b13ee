#include "pointer_map.h"

#include <stdint.h>
#include <stdlib.h>

static size_t start(const struct ropebend_map * map, const void * key) {
    return (size_t) (((uint64_t) (uintptr_t) key >> 4) * 0x9e3779b97f4a7c15u >> 20) & (map->n_entries - 1);
}

// the entry of `key`, or the free one where it belongs; there is always a free one
static struct ropebend_map_entry * find(const struct ropebend_map * map, const void * key) {
    size_t i = start(map, key);
    while (map->entries[i].key != NULL && map->entries[i].key != key) {
        i = (i + 1) & (map->n_entries - 1);
    }
    return &map->entries[i];
}

static bool rebuild(struct ropebend_map * map, size_t n_entries, const void * without_group) {
    struct ropebend_map now = { calloc(n_entries, sizeof(*now.entries)), n_entries, 0 };
    if (now.entries == NULL) {
        return false;
    }
    for (size_t i = 0; i < map->n_entries; i++) {
        const struct ropebend_map_entry * e = &map->entries[i];
        if (e->key != NULL && (without_group == NULL || e->group != without_group)) {
            *find(&now, e->key) = *e;
            now.n_used++;
        }
    }
    free(map->entries);
    *map = now;
    return true;
}

bool ropebend_map_set(struct ropebend_map * map, const void * key, const void * value, const void * group) {
    if (2 * (map->n_used + 1) > map->n_entries && !rebuild(map, map->n_entries == 0 ? 64 : 2 * map->n_entries, NULL)) {
        return false;
    }
    struct ropebend_map_entry * e = find(map, key);
    map->n_used += e->key == NULL;
    *e = (struct ropebend_map_entry) { key, value, group };
    return true;
}

const struct ropebend_map_entry * ropebend_map_get(const struct ropebend_map * map, const void * key) {
    const struct ropebend_map_entry * e = map->n_entries == 0 ? NULL : find(map, key);
    return e == NULL || e->key == NULL ? NULL : e;
}

void ropebend_map_drop_group(struct ropebend_map * map, const void * group) {
    bool any = false;
    for (size_t i = 0; i < map->n_entries && !any; i++) {
        any = map->entries[i].key != NULL && map->entries[i].group == group;
    }
    if (any) {
        rebuild(map, map->n_entries,
                group); // out of memory: stale entries are overwritten when their address comes again
    }
}
