/** Sampling: picks a token id from logits. Greedy picks are Python's; a seed repeats picks here, not Python's. */
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
    }
}

class Sampler(private val sampling: Sampling) {
    private val random = sampling.seed?.let { Random(it) } ?: Random.Default

    /** An id from logits `[vocab]`. Throws EngineException when a logit is NaN or none is finite. */
    fun pick(logits: FloatArray, history: List<Int>): Int {
        val scores = penalised(logits, history)
        val best = argmax(scores)
        if (scores[best].isNaN() || scores[best].isInfinite()) {
            throw EngineException("the decoder gave the logit ${scores[best]} for token $best", "verify the bundle")
        }
        if (sampling.temperature == 0.0) return best
        val ids = scores.indices.sortedByDescending { scores[it] } // stable: of equal scores the lower ids first
            .let { if (sampling.topK in 1 until it.size) it.take(sampling.topK) else it }
        val weights = DoubleArray(ids.size) { exp((scores[ids[it]] - scores[best]) / sampling.temperature) }
        val kept = nucleus(weights)
        var left = random.nextDouble() * (0 until kept).sumOf { weights[it] }
        for (place in 0 until kept) {
            left -= weights[place]
            if (left < 0) return ids[place]
        }
        return ids[kept - 1]
    }

    private fun penalised(logits: FloatArray, history: List<Int>): FloatArray {
        if (sampling.repeatPenalty == 1.0 || history.isEmpty()) return logits
        val scores = logits.copyOf()
        val penalty = sampling.repeatPenalty
        for (id in history.toSet()) {
            scores[id] = (if (scores[id] > 0) scores[id] / penalty else scores[id] * penalty).toFloat()
        }
        return scores
    }

    /** How many of the weights, which descend, reach topP together. */
    private fun nucleus(weights: DoubleArray): Int {
        val wanted = sampling.topP * weights.sum()
        var sum = 0.0
        for (place in weights.indices) {
            sum += weights[place]
            if (sum >= wanted) return place + 1
        }
        return weights.size
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
