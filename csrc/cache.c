/* Allocates, shares and releases the pages of the KV cache. */
#include "cache.h"

#include "os/os.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* The header lies before a page's elements, in a cache line of its own. The count is atomic because
 * different threads may use and free copies of a sequence. */
typedef struct page_header {
    _Alignas(64) atomic_int n_owners;
    size_t bytes;             /* of header and page */
    struct page_header *next; /* the next spare page */
} page_header;

/* Released pages are kept for the next sequence: fresh memory costs a page fault every 4 KB, about
 * 5 % of the time of a prefill. All spare pages have the same size. Their total size is limited to
 * 2.7 full contexts of GPT-2 124M. */
#define SPARE_BYTES ((size_t)192 << 20)

static struct {
    os_lock lock; /* never waited for: in a forked child it may stay locked */
    page_header *first;
    size_t bytes;
} spare = {.lock = OS_LOCK_INITIAL};

static page_header *header_of(void *page) {
    return (page_header *)(void *)((char *)page - sizeof(page_header));
}

static size_t page_bytes(const gpt2c_model *m) {
    return 2 * (size_t)m->config.n_layer * (size_t)m->config.n_embd * PAGE_POSITIONS *
           cache_element_bytes(m);
}

/* Needs the lock. */
static void free_spares(void) {
    while (spare.first) {
        page_header *header = spare.first;
        spare.first = header->next;
        os_arena_free(header, header->bytes);
    }
    spare.bytes = 0;
}

void cache_free_spares(void) {
    if (os_lock_try(&spare.lock)) {
        free_spares();
        os_lock_release(&spare.lock);
    }
}

static page_header *take_spare(size_t bytes) {
    page_header *header = NULL;
    if (!os_lock_try(&spare.lock))
        return NULL;
    if (spare.first && spare.first->bytes != bytes)
        free_spares();
    if (spare.first) {
        header = spare.first;
        spare.first = header->next;
        spare.bytes -= bytes;
    }
    os_lock_release(&spare.lock);
    return header;
}

/* Returns whether the page was kept. */
static int keep_as_spare(page_header *header) {
    int is_kept = 0;
    if (!os_lock_try(&spare.lock))
        return 0;
    if (header->bytes <= SPARE_BYTES - spare.bytes &&
        (!spare.first || spare.first->bytes == header->bytes)) {
        header->next = spare.first;
        spare.first = header;
        spare.bytes += header->bytes;
        is_kept = 1;
    }
    os_lock_release(&spare.lock);
    return is_kept;
}

static void *page_create(const gpt2c_model *m) {
    size_t bytes = sizeof(page_header) + page_bytes(m);
    page_header *header = take_spare(bytes);
    if (!header)
        header = os_arena_alloc(bytes);
    if (!header)
        return NULL;
    header->bytes = bytes;
    atomic_init(&header->n_owners, 1);
    return (char *)header + sizeof *header;
}

static void page_release(void *page) {
    page_header *header = header_of(page);
    if (atomic_fetch_sub_explicit(&header->n_owners, 1, memory_order_acq_rel) == 1 &&
        !keep_as_spare(header))
        os_arena_free(header, header->bytes);
}

static void page_share(void *page) {
    atomic_fetch_add_explicit(&header_of(page)->n_owners, 1, memory_order_relaxed);
}

static int page_is_shared(void *page) {
    return atomic_load_explicit(&header_of(page)->n_owners, memory_order_acquire) > 1;
}

static int32_t pages_for(int32_t length) { return (length + PAGE_POSITIONS - 1) / PAGE_POSITIONS; }

gpt2c_status gpt2c_sequence_create(const gpt2c_model *model, gpt2c_sequence **sequence) {
    gpt2c_sequence *s = calloc(1, sizeof *s);
    if (!s)
        return GPT2C_NO_MEMORY;
    s->model = model;
    s->pages = calloc((size_t)pages_for(model->config.n_positions), sizeof *s->pages);
    if (!s->pages) {
        free(s);
        return GPT2C_NO_MEMORY;
    }
    *sequence = s;
    return GPT2C_OK;
}

gpt2c_status gpt2c_sequence_copy(const gpt2c_sequence *sequence, gpt2c_sequence **copy) {
    gpt2c_status status = gpt2c_sequence_create(sequence->model, copy);
    if (status)
        return status;
    (*copy)->length = sequence->length;
    (*copy)->n_pages = pages_for(sequence->length);
    for (int32_t i = 0; i < (*copy)->n_pages; i++) {
        (*copy)->pages[i] = sequence->pages[i];
        page_share(sequence->pages[i]);
    }
    return GPT2C_OK;
}

static void drop_pages(gpt2c_sequence *s, int32_t n_kept) {
    while (s->n_pages > n_kept)
        page_release(s->pages[--s->n_pages]);
}

void gpt2c_sequence_free(gpt2c_sequence *sequence) {
    if (!sequence)
        return;
    drop_pages(sequence, 0);
    free(sequence->pages);
    free(sequence);
}

int32_t gpt2c_sequence_length(const gpt2c_sequence *sequence) { return sequence->length; }

/* The call may have been at any point of cache_reserve, so the pages after `length` are leaked, not
 * freed. */
void gpt2c_sequence_forget_call(gpt2c_sequence *sequence) {
    sequence->n_pages = pages_for(sequence->length);
    sequence->in_forward = 0;
}

gpt2c_status gpt2c_sequence_truncate(gpt2c_sequence *sequence, int32_t length) {
    if (length < 0 || length > sequence->length)
        return GPT2C_BAD_ARGUMENT;
    sequence->length = length;
    drop_pages(sequence, pages_for(length));
    return GPT2C_OK;
}

/* Copies the last page if it is partly filled and shared, since the next token will write to it. */
static gpt2c_status unshare_last_page(gpt2c_sequence *s) {
    int32_t last = s->length / PAGE_POSITIONS;
    if (s->length % PAGE_POSITIONS == 0 || !page_is_shared(s->pages[last]))
        return GPT2C_OK;
    void *own = page_create(s->model);
    if (!own)
        return GPT2C_NO_MEMORY;
    void *shared = s->pages[last];
    memcpy(own, shared, page_bytes(s->model));
    s->pages[last] = own; /* before the release: see gpt2c_sequence_forget_call */
    page_release(shared);
    return GPT2C_OK;
}

gpt2c_status cache_reserve(gpt2c_sequence *s, int32_t n_tokens) {
    int32_t had = s->n_pages;
    int32_t needed = pages_for(s->length + n_tokens);
    while (s->n_pages < needed) {
        void *page = page_create(s->model);
        if (!page) {
            drop_pages(s, had);
            return GPT2C_NO_MEMORY;
        }
        s->pages[s->n_pages++] = page;
    }
    gpt2c_status status = unshare_last_page(s);
    if (status)
        drop_pages(s, had);
    return status;
}
