/* Choosing a token from logits. */

/* Goes by blocks, so that only one has to be searched for its greatest logit's id. */
static int arg_max_kernel(const float *logits, int n) {
    const int block = 1024;
    float best = 0.0f;
    int best_block = -1;
    for (int begin = 0; begin < n; begin += block) {
        float most = greatest(logits + begin, n - begin < block ? n - begin : block);
        if (most != most)
            return -1;
        if (best_block < 0 || most > best) {
            best = most;
            best_block = begin;
        }
    }
    int id = best_block;
    while (logits[id] != best)
        id++;
    return id;
}

/* Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four words
 * that depend on nothing but the counter and the key. */
INLINE void philox(uint32_t counter[4], uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * counter[0];
        uint64_t b = (uint64_t)0xCD9E8D57u * counter[2];
        uint32_t next0 = (uint32_t)(b >> 32) ^ counter[1] ^ key0;
        uint32_t next2 = (uint32_t)(a >> 32) ^ counter[3] ^ key1;
        counter[0] = next0;
        counter[1] = (uint32_t)b;
        counter[2] = next2;
        counter[3] = (uint32_t)a;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

/* The random word of a token id: word id mod 4 of the counter (id / 4, position, sample, 0), the
 * last word being kept for other uses of the same generator. */
INLINE uint32_t random_word(const noise_key *key, int32_t id) {
    uint32_t counter[4] = {(uint32_t)id >> 2, key->position, key->sample, 0};
    philox(counter, (uint32_t)key->seed, (uint32_t)(key->seed >> 32));
    return counter[id & 3];
}

/* -log(u) of u = (r + 1/2) / 2^32. Near u = 1 it comes from the distance to 1, which keeps all of
 * its 32 bits: the likeliest ids of a draw are decided there. */
INLINE vf exponential_variate(uint32_t r) {
    const float unit = 2.32830644e-10f; /* 2^-32 */
    float u = ((float)r + 0.5f) * unit;
    float distance = ((float)~r + 0.5f) * unit;
    vf far_from_one = vf_log(vf_set1(u));
    vf near_one = log_of_one_plus(vf_set1(-distance));
    vf log_u = vf_if_less(vf_set1(distance), vf_set1(0.25f), near_one, far_from_one);
    return vf_sub(vf_set1(0.0f), log_u);
}

/* The Gumbel-max trick: the arg max over ids of logit / temperature - log(-log u) is a draw from
 * the soft-max. */
static float perturb_kernel(float logit, float temperature, int32_t id, const noise_key *key) {
    vf exponential = exponential_variate(random_word(key, id));
    vf noise = vf_sub(vf_set1(0.0f), vf_log(exponential));
    vf score = vf_add(vf_div(vf_set1(logit), vf_set1(temperature)), noise);
    float lanes_of[VF_WIDTH];
    vf_store(lanes_of, score);
    return lanes_of[0];
}
