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
    unsigned generation; /* the budget's, when the page was made */
    cache_budget *budget;
    size_t bytes; /* of the header and the elements */
} page_header;

struct cache_budget {
    atomic_size_t bytes, limit;
    atomic_int n_users;  /* references: one of the model, and one of each page in use */
    unsigned generation; /* increased in a forked child; pages of earlier ones are not counted */
};

/* Released pages are kept for the next sequence. Fresh memory is expensive: in a virtual machine a
 * page of GPT-2 124M (4.7 MB) took 0.6 ms when it was touched, and 9 ms if the host had to find the
 * memory. That is 2 to 30 % of the time of 16 prompt tokens and 32 new ones in 8 bits.
 *
 * Up to MAX_SPARE_BYTES, 2.7 full contexts of GPT-2 124M, the pages simply stay. Further pages are
 * offered to the system, which takes them when other programs need memory, and otherwise leaves
 * them for the next sequence. All spare pages have the same size. The list is not in the pages,
 * because writing to a page would take the offer back. */
#define MAX_SPARE_BYTES ((size_t)192 << 20)
#define MAX_OFFERED_BYTES ((size_t)2 << 30)
#define MAX_SPARE_PAGES 4096

static struct {
    os_lock lock; /* only tried, never waited for: in a forked child it may stay locked */
    page_header *pages[MAX_SPARE_PAGES];
    size_t n, page_bytes;
} spare = {.lock = OS_LOCK_INITIAL};

cache_budget *cache_budget_create(void) {
    cache_budget *budget = calloc(1, sizeof *budget);
    if (budget)
        atomic_init(&budget->n_users, 1);
    return budget;
}

void cache_budget_release(cache_budget *budget) {
    if (budget && atomic_fetch_sub_explicit(&budget->n_users, 1, memory_order_acq_rel) == 1)
        free(budget);
}

/* Adds a page to the budget and returns 1, or returns 0 if that would exceed the limit. */
static int budget_take(cache_budget *budget, size_t bytes) {
    size_t limit = atomic_load_explicit(&budget->limit, memory_order_relaxed);
    size_t used = atomic_load_explicit(&budget->bytes, memory_order_relaxed);
    do {
        if (limit && (used > limit || bytes > limit - used))
            return 0;
    } while (!atomic_compare_exchange_weak(&budget->bytes, &used, used + bytes));
    atomic_fetch_add_explicit(&budget->n_users, 1, memory_order_relaxed);
    return 1;
}

static void budget_give_back(cache_budget *budget, unsigned generation, size_t bytes) {
    if (generation == budget->generation)
        atomic_fetch_sub(&budget->bytes, bytes);
    cache_budget_release(budget);
}

static page_header *header_of(void *page) {
    return (page_header *)(void *)((char *)page - sizeof(page_header));
}

size_t gpt2c_model_page_bytes(const gpt2c_model *m) {
    return 2 * (size_t)m->config.n_layer * (size_t)m->config.n_embd * PAGE_POSITIONS *
           cache_element_bytes(m);
}

size_t gpt2c_model_cache_bytes(const gpt2c_model *model) {
    return atomic_load_explicit(&model->budget->bytes, memory_order_relaxed);
}

size_t gpt2c_model_cache_limit(const gpt2c_model *model) {
    return atomic_load_explicit(&model->budget->limit, memory_order_relaxed);
}

void gpt2c_model_set_cache_limit(gpt2c_model *model, size_t bytes) {
    atomic_store_explicit(&model->budget->limit, bytes, memory_order_relaxed);
}

/* Calls in other threads of the parent may have allocated pages that no sequence has yet. The child
 * cannot free those, so it counts none of the parent's pages. */
void gpt2c_model_forget_pages(gpt2c_model *model) {
    model->budget->generation++;
    atomic_store(&model->budget->bytes, 0);
}

/* The caller holds the lock. */
static void free_spares(void) {
    while (spare.n)
        os_arena_free(spare.pages[--spare.n], spare.page_bytes);
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
    if (spare.page_bytes != bytes)
        free_spares();
    if (spare.n)
        header = spare.pages[--spare.n];
    os_lock_release(&spare.lock);
    return header;
}

/* Whether one more spare page may be kept. The caller holds the lock. */
static int may_keep(page_header *header) {
    size_t bytes = header->bytes, after = (spare.n + 1) * bytes;
    if (spare.n == MAX_SPARE_PAGES || (spare.n && spare.page_bytes != bytes))
        return 0;
    return after <= MAX_SPARE_BYTES ||
           (after <= MAX_SPARE_BYTES + MAX_OFFERED_BYTES && os_arena_offer(header, bytes));
}

/* Returns whether the page was kept. */
static int keep_as_spare(page_header *header) {
    if (!os_lock_try(&spare.lock))
        return 0;
    size_t bytes = header->bytes; /* an offered page's content may be lost */
    int is_kept = may_keep(header);
    if (is_kept) {
        spare.page_bytes = bytes;
        spare.pages[spare.n++] = header;
    }
    os_lock_release(&spare.lock);
    return is_kept;
}

static gpt2c_status page_create(const gpt2c_model *m, void **page) {
    size_t page_bytes = gpt2c_model_page_bytes(m), bytes = sizeof(page_header) + page_bytes;
    if (!budget_take(m->budget, page_bytes))
        return GPT2C_CACHE_FULL;
    page_header *header = take_spare(bytes);
    if (!header)
        header = os_arena_alloc(bytes);
    if (!header) {
        budget_give_back(m->budget, m->budget->generation, page_bytes);
        return GPT2C_NO_MEMORY;
    }
    header->bytes = bytes;
    header->budget = m->budget;
    header->generation = m->budget->generation;
    atomic_init(&header->n_owners, 1);
    *page = (char *)header + sizeof *header;
    return GPT2C_OK;
}

static void page_release(void *page) {
    page_header *header = header_of(page);
    if (atomic_fetch_sub_explicit(&header->n_owners, 1, memory_order_acq_rel) > 1)
        return;
    budget_give_back(header->budget, header->generation, header->bytes - sizeof *header);
    if (!keep_as_spare(header))
        os_arena_free(header, header->bytes);
}

static void page_share(void *page) {
    atomic_fetch_add_explicit(&header_of(page)->n_owners, 1, memory_order_relaxed);
}

static int page_is_shared(void *page) {
    return atomic_load_explicit(&header_of(page)->n_owners, memory_order_acquire) > 1;
}

static int32_t n_pages_for(int32_t length) {
    return (length + PAGE_POSITIONS - 1) / PAGE_POSITIONS;
}

gpt2c_status gpt2c_sequence_create(const gpt2c_model *model, gpt2c_sequence **sequence) {
    gpt2c_sequence *s = calloc(1, sizeof *s);
    if (!s)
        return GPT2C_NO_MEMORY;
    s->model = model;
    s->pages = calloc((size_t)n_pages_for(model->config.n_positions), sizeof *s->pages);
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
    (*copy)->n_pages = n_pages_for(sequence->length);
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

/* The fork may have interrupted cache_reserve at any point, so the pages after `length` are leaked
 * and not freed. */
void gpt2c_sequence_forget_call(gpt2c_sequence *sequence) {
    sequence->n_pages = n_pages_for(sequence->length);
    sequence->in_forward = 0;
}

gpt2c_status gpt2c_sequence_truncate(gpt2c_sequence *sequence, int32_t length) {
    if (length < 0 || length > sequence->length)
        return GPT2C_BAD_ARGUMENT;
    sequence->length = length;
    drop_pages(sequence, n_pages_for(length));
    return GPT2C_OK;
}

/* Whether the last page is partly filled and shared: if so, the next token needs a copy of it. */
static int shares_last_page(const gpt2c_sequence *s) {
    return s->length % PAGE_POSITIONS && page_is_shared(s->pages[s->length / PAGE_POSITIONS]);
}

static gpt2c_status unshare_last_page(gpt2c_sequence *s) {
    int32_t last = s->length / PAGE_POSITIONS;
    void *copy;
    if (!shares_last_page(s))
        return GPT2C_OK;
    gpt2c_status status = page_create(s->model, &copy);
    if (status)
        return status;
    void *shared = s->pages[last];
    memcpy(copy, shared, gpt2c_model_page_bytes(s->model));
    s->pages[last] = copy; /* before the release: see gpt2c_sequence_forget_call */
    page_release(shared);
    return GPT2C_OK;
}

gpt2c_status cache_reserve(gpt2c_sequence *s, int32_t n_tokens) {
    int32_t n_before = s->n_pages;
    int32_t needed = n_pages_for(s->length + n_tokens);
    gpt2c_status status = GPT2C_OK;
    while (!status && s->n_pages < needed) {
        void *page;
        status = page_create(s->model, &page);
        if (!status)
            s->pages[s->n_pages++] = page;
    }
    if (!status)
        status = unshare_last_page(s);
    if (status)
        drop_pages(s, n_before);
    return status;
}

size_t cache_bytes_needed(const gpt2c_sequence *s, int32_t n_tokens) {
    int32_t n_new = n_pages_for(s->length + n_tokens) - s->n_pages;
    return (size_t)((n_new > 0 ? n_new : 0) + shares_last_page(s)) *
           gpt2c_model_page_bytes(s->model);
}
