// A hash map from addresses to addresses, with a second address per entry by which entries are dropped together.

#ifndef ROPEBEND_POINTER_MAP_H
#define ROPEBEND_POINTER_MAP_H

#include <stdbool.h>
#include <stddef.h>

struct ropebend_map_entry {
    const void * key; // NULL: free
    const void * value;
    const void * group;
};

struct ropebend_map {
    struct ropebend_map_entry * entries;
    size_t                      n_entries; // a power of two, or 0
    size_t                      n_used;
};

// false: out of memory
bool ropebend_map_set(struct ropebend_map * map, const void * key, const void * value, const void * group);

const struct ropebend_map_entry * ropebend_map_get(const struct ropebend_map * map, const void * key);

void ropebend_map_drop_group(struct ropebend_map * map, const void * group);

#endif
