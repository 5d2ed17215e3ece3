/* Random numbers that are a function of a seed and of a counter alone, so that neither the instruction set nor the number of
 * threads has a say in them. Included for each instruction set, after LANE names its operations on INTS. */

/* A lane's 32 random bits, by its counter and the two halves of fe_mixed: two rounds of multiplications and shifts. */
TARGET FE_INLINE INTS NAME(random)(INTS counter, INTS key, INTS other) {
    INTS bits = LANE(exclusive)(counter, key);
    bits = LANE(exclusive)(bits, LANE(shift_right)(bits, 16));
    bits = LANE(times)(bits, LANE(all)(0x21f0aaad));
    bits = LANE(exclusive)(bits, LANE(shift_right)(bits, 15));
    bits = LANE(times)(LANE(plus)(bits, other), LANE(all)((int32_t)0xd35a2d97u));
    return LANE(exclusive)(bits, LANE(shift_right)(bits, 15));
}
