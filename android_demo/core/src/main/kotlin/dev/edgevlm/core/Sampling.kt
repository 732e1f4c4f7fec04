/** Sampling: picks a token id from logits. A seed gives Python's picks, up to the last bit of an exponential. */
package dev.edgevlm.core

import kotlin.math.exp
import kotlin.random.Random

/** Temperature 0 takes the most probable token; topK 0, topP 1 and repeatPenalty 1 change nothing. */
class Sampling(
    val temperature: Double = 0.0,
    val topK: Int = 0,
    val topP: Double = 1.0,
    val repeatPenalty: Double = 1.0,
    val seed: Long? = null,
) {
    init {
        fun need(name: String, value: Number, ok: Boolean, rule: String) {
            if (!ok) throw UsageException("$name is $value; it must be $rule")
        }
        need("temperature", temperature, temperature >= 0 && temperature < Double.POSITIVE_INFINITY, "0 or more")
        need("topK", topK, topK >= 0, "0 or more")
        need("topP", topP, topP > 0 && topP <= 1, "above 0 and at most 1")
        need("repeatPenalty", repeatPenalty, repeatPenalty > 0 && repeatPenalty < Double.POSITIVE_INFINITY, "above 0")
        need("seed", seed ?: 0, seed == null || seed >= 0, "0 or more")
    }
}

class Sampler(private val sampling: Sampling) {
    private val random = Pcg64(sampling.seed ?: Random.nextLong(Long.MAX_VALUE))

    /** An id from logits `[vocab]`. Throws EngineException when a logit is NaN or none is finite. */
    fun pick(logits: FloatArray, history: List<Int>): Int {
        val scores = penalised(logits, history)
        val best = argmax(scores)
        if (scores[best].isNaN() || scores[best].isInfinite()) {
            throw EngineException("the decoder gave the logit ${scores[best]} for token $best", "verify the bundle")
        }
        if (sampling.temperature == 0.0) return best
        val top = top(scores)
        val weights = DoubleArray(top.size) { place ->
            // In single precision, as Python's.
            val gap = ((scores[top[place]] - scores[best]) / sampling.temperature).toFloat()
            exp(gap.toDouble()).toFloat().toDouble()
        }
        val kept = nucleus(top, weights)
        val mass = DoubleArray(kept.size)
        var sum = 0.0
        for (place in kept.indices) {
            sum += weights[kept[place]]
            mass[place] = sum
        }
        val wanted = random.nextDouble() * sum
        return top[kept[mass.indexOfFirst { it > wanted }.let { if (it < 0) kept.lastIndex else it }]]
    }

    private fun penalised(logits: FloatArray, history: List<Int>): FloatArray {
        if (sampling.repeatPenalty == 1.0 || history.isEmpty()) return logits
        val scores = logits.copyOf()
        val penalty = sampling.repeatPenalty.toFloat()
        for (id in history.toSet()) scores[id] = if (scores[id] > 0) scores[id] / penalty else scores[id] * penalty
        return scores
    }

    /** The ids of the topK best scores, the lower ids of equal ones; or all, in their order. */
    private fun top(scores: FloatArray): List<Int> =
        if (sampling.topK !in 1 until scores.size) scores.indices.toList()
        else scores.indices.sortedByDescending { scores[it] }.take(sampling.topK) // the sort is stable

    /** Places of the fewest ids whose mass reaches topP. */
    private fun nucleus(top: List<Int>, weights: DoubleArray): List<Int> {
        if (sampling.topP == 1.0) return top.indices.toList()
        val sorted = top.indices.sortedByDescending { weights[it] }
        val wanted = sampling.topP * weights.sum()
        var sum = 0.0
        val last = sorted.indexOfFirst {
            sum += weights[it]
            sum >= wanted
        }
        return if (last < 0) sorted else sorted.take(last + 1)
    }
}

/** The first of the largest; the first NaN, if there is one. */
internal fun argmax(values: FloatArray): Int {
    var best = 0
    for (i in values.indices) {
        if (values[i].isNaN()) return i
        if (values[i] > values[best]) best = i
    }
    return best
}
