/** NumPy's random numbers: PCG XSL RR 128/64 (O'Neill, 2014), begun by a seed as NumPy's SeedSequence spreads it. */
package dev.edgevlm.core

private const val MULTIPLIER_HIGH = 0x2360ED051FC65DA4L
private const val MULTIPLIER_LOW = 0x4385DF649FCCF645L
private const val POOL = 4

/** `numpy.random.default_rng(seed)`, of which this project takes `random()` alone. */
internal class Pcg64(seed: Long) {
    private var high = 0L // of the state's 128 bits
    private var low = 0L
    private val stepHigh: Long
    private val stepLow: Long

    init {
        val words = seeded(seed)
        stepHigh = words[2] shl 1 or (words[3] ushr 63)
        stepLow = words[3] shl 1 or 1
        step()
        add(words[0], words[1])
        step()
    }

    /** From 0 to 1, of 53 bits. */
    fun nextDouble(): Double {
        step()
        val mixed = java.lang.Long.rotateRight(high xor low, (high ushr 58).toInt())
        return (mixed ushr 11) / 9007199254740992.0
    }

    private fun step() {
        val product = high * MULTIPLIER_LOW + low * MULTIPLIER_HIGH + upper(low, MULTIPLIER_LOW)
        low *= MULTIPLIER_LOW
        high = product
        add(stepHigh, stepLow)
    }

    private fun add(otherHigh: Long, otherLow: Long) {
        low += otherLow
        high += otherHigh + if (low.toULong() < otherLow.toULong()) 1 else 0
    }

    /** The upper 64 bits of a product: Java has it since 9 only. */
    private fun upper(a: Long, b: Long): Long {
        val (a1, a0) = (a ushr 32) to (a and 0xFFFFFFFFL)
        val (b1, b0) = (b ushr 32) to (b and 0xFFFFFFFFL)
        val middle = a1 * b0 + (a0 * b0 ushr 32)
        val other = a0 * b1 + (middle and 0xFFFFFFFFL)
        return a1 * b1 + (middle ushr 32) + (other ushr 32)
    }

    private companion object {
        /** Four words of 64 bits, each bit of which depends on each of the seed. */
        fun seeded(seed: Long): LongArray {
            val pool = pool(intArrayOf(seed.toInt(), (seed ushr 32).toInt()))
            val hash = Hash(0x8B51F9DD.toInt(), 0x58F38DED)
            val words = LongArray(2 * POOL) { hash.of(pool[it % POOL]).toLong() and 0xFFFFFFFFL }
            return LongArray(POOL) { words[2 * it] or (words[2 * it + 1] shl 32) }
        }

        fun pool(entropy: IntArray): IntArray {
            val hash = Hash(0x43B0D7E5, 0x931E8875.toInt())
            val pool = IntArray(POOL) { hash.of(entropy.getOrElse(it) { 0 }) }
            for (from in 0 until POOL) for (to in 0 until POOL) {
                if (from != to) pool[to] = mixed(pool[to], hash.of(pool[from]))
            }
            return pool
        }

        fun mixed(x: Int, y: Int): Int {
            val result = 0xCA01F9DD.toInt() * x - 0x4973F715 * y
            return result xor (result ushr 16)
        }
    }

    private class Hash(private var constant: Int, private val multiplier: Int) {
        fun of(value: Int): Int {
            val first = value xor constant
            constant *= multiplier
            val second = first * constant
            return second xor (second ushr 16)
        }
    }
}
