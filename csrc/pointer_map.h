// A hash map from addresses to addresses, with a second address per entry by which entries are dropped together.

#ifndef ROPEBEND_POINTER_MAP_H
#define ROPEBEND_POINTER_MAP_H

#include <stdbool.h>
#include <stddef.h>

struct pointer_map_entry {
    const void * key;   // NULL: free
    const void * value;
    const void * group;
};

struct pointer_map {
    struct pointer_map_entry * entries;
    size_t                     n_entries; // a power of two, or 0
    size_t                     n_used;
};

// false: out of memory
bool pointer_map_set(struct pointer_map * map, const void * key, const void * value, const void * group);

const struct pointer_map_entry * pointer_map_get(const struct pointer_map * map, const void * key);

void pointer_map_drop_group(struct pointer_map * map, const void * group);

#endif
