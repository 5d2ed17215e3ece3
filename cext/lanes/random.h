/* Random numbers that are a function of a seed and of a counter alone, so that neither the instruction set nor the number of
 * threads has a say in them. Included for each instruction set, after LANE names its operations on INTS. */

/* Random bits of LANES counters from `first` on, which is a multiple of LANES, by the two halves of fe_mixed: two rounds of
 * multiplications and shifts. Lanes differ in the counter's low bits alone, so that the first shift is the same for all. */
TARGET FE_INLINE INTS NAME(random)(uint32_t first, uint32_t key, INTS other) {
    const uint32_t shared = first ^ key;
    INTS bits = LANE(exclusive)(LANE(all)((int32_t)(shared ^ shared >> 16)), LANE(count_up)());
    bits = LANE(times)(bits, LANE(all)(0x21f0aaad));
    bits = LANE(exclusive)(bits, LANE(shift_right)(bits, 15));
    bits = LANE(times)(LANE(plus)(bits, other), LANE(all)((int32_t)0xd35a2d97u));
    return LANE(exclusive)(bits, LANE(shift_right)(bits, 15));
}
