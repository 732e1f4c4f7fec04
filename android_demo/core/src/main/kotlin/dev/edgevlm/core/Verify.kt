/** Verification: replays the golden sample on this device, stage by stage, and compares it with the reference. */
package dev.edgevlm.core

import java.util.Locale
import kotlin.math.abs
import kotlin.math.sqrt

private const val TOKENS = 16

/** One stage compared with one reference. A row without a tolerance tells what quantising costs. */
class Row(val stage: String, val against: String, val error: Map<String, Double>, val tolerance: Map<String, Double>) {
    val finite get() = error.values.none { it.isNaN() || it.isInfinite() }
    val ok get() = finite && tolerance.all { (name, bound) ->
        val found = error.getValue(name)
        if (name == "max_abs") found <= bound else found >= bound
    }

    internal fun toMap(): Map<String, Any> =
        mapOf("stage" to stage, "against" to against, "error" to error, "tolerance" to tolerance, "ok" to ok)
}

class Report(val rows: List<Row>) {
    val ok get() = rows.all { it.ok }

    fun error(stage: String, against: String) = rows.first { it.stage == stage && it.against == against }.error

    /** As `edge verify --json` writes it. */
    fun toMap(): Map<String, Any> = mapOf("ok" to ok, "rows" to rows.map { it.toMap() })

    /** For the screen: the worst of what must hold. */
    fun sentence(): String {
        val bad = rows.filter { !it.ok }
        if (bad.isNotEmpty()) {
            return "This phone computes ANOTHER model: " + bad.joinToString { "${it.stage} ${it.error}" }
        }
        val cosine = rows.filter { it.against == "stored" }.mapNotNull { it.error["cosine"] }.minOrNull() ?: 1.0
        return "This phone computes the same model: cosine %.6f.".format(Locale.ROOT, cosine)
    }

    /** For the screen: what each stage differs by, a line for each. */
    fun table(): String = rows.joinToString("\n") { row ->
        val measures = row.error.entries.sortedBy { it.key }
            .joinToString { (name, value) -> "$name %.6g".format(Locale.ROOT, value) }
        "${if (row.ok) '✓' else '✗'} ${row.stage}, ${row.against}: $measures"
    }
}

/** Throws EdgeException when a stage cannot run at all. Nothing that the session remembers is used, or spoilt. */
fun verify(session: Session, stop: Stop = Stop()): Report {
    val manifest = session.bundle.manifest
    val golden = Golden.load(session.bundle.file(manifest.golden))
    val part = manifest.part("decoder")
    val (logits, tokens) = replay(session, golden, stop)
    val rows = ArrayList<Row>()
    val picture = distance(pixels(golden.picture, manifest.image), golden.pixelValues)
    rows += Row("picture", "golden", picture, mapOf("max_abs" to 1e-4))
    rows += Row("prompt", "golden", mapOf("tokens" to if (promptAgrees(session)) 1.0 else 0.0), mapOf("tokens" to 1.0))
    if (manifest.sees) {
        val embeds = session.model.see(golden.pixelValues, stop)
        val bounds = manifest.part("vision").bounds("max_abs", "cosine")
        rows += Row("vision", "stored", nearest(embeds, golden) { it.imageEmbeds }.second, bounds)
        rows += Row("vision", "fp32", distance(embeds, golden.fp32.imageEmbeds), emptyMap())
    }
    val (near, error) = nearest(logits, golden) { it.logits }
    rows += Row("prefill", "stored", error, part.bounds("max_abs", "cosine"))
    rows += Row("prefill", "fp32", distance(logits, golden.fp32.logits), emptyMap())
    rows += Row("tokens", "stored", mapOf("tokens" to share(tokens, near.tokens)), part.bounds("tokens"))
    rows += Row("tokens", "fp32", mapOf("tokens" to share(tokens, golden.fp32.tokens)), emptyMap())
    return Report(rows)
}

private fun Part.bounds(vararg names: String) = tolerance.filterKeys { it in names }

/**
 * The outputs on the stored weights, and the distance to them: of a part whose kernels round activations where a
 * processor has the instructions, and do not on another, the nearer ones.
 */
private fun nearest(
    found: FloatArray,
    golden: Golden,
    output: (Outputs) -> FloatArray,
): Pair<Outputs, Map<String, Double>> =
    listOfNotNull(golden.stored, golden.rounded).map { it to distance(found, output(it)) }
        .maxBy { (_, error) -> error.getValue("cosine") }

/** The golden prompt's last logits, and greedy tokens, −1 from the first logits on that are not finite. */
private fun replay(session: Session, golden: Golden, stop: Stop): Pair<FloatArray, IntArray> {
    val spec = session.bundle.manifest
    val rows = Segment.Rows(golden.fp32.imageEmbeds, "golden", spec.prompt.imageTokens)
    session.forget()
    session.model.rewind(0)
    val first = session.model.extend(
        spec.goldenSegments.map { ids -> if (ids == null) rows else Segment.Tokens(ids.toIntArray()) }, stop)
    val tokens = IntArray(TOKENS) { -1 }
    var logits = first
    for (place in tokens.indices) {
        if (logits.any { it.isNaN() || it.isInfinite() }) break
        tokens[place] = argmax(logits)
        logits = session.model.extend(listOf(Segment.Tokens(intArrayOf(tokens[place]))), stop)
    }
    return first to tokens
}

private fun promptAgrees(session: Session): Boolean {
    val spec = session.bundle.manifest
    val image = Seen(listOf(Segment.Rows(FloatArray(0), "golden", spec.prompt.imageTokens)))
    val cut = segments(spec.prompt, session.tokenizer, listOf(Turn(spec.goldenQuestion, listOf(image))))
    return cut.map { (it as? Segment.Tokens)?.ids?.asList() } == spec.goldenSegments
}

/** Largest absolute difference, and cosine in double precision; NaN where either holds NaN or infinity. */
internal fun distance(found: FloatArray, reference: FloatArray): Map<String, Double> {
    if (found.size != reference.size) {
        throw BundleException("the golden sample holds ${reference.size} numbers where the bundle gives ${found.size}")
    }
    var (most, product) = 0.0 to 0.0
    var (a, b) = 0.0 to 0.0
    for (i in found.indices) {
        val (x, y) = found[i].toDouble() to reference[i].toDouble()
        if (x.isNaN() || y.isNaN() || x.isInfinite() || y.isInfinite()) {
            return mapOf("max_abs" to Double.NaN, "cosine" to Double.NaN)
        }
        most = maxOf(most, abs(x - y))
        product += x * y
        a += x * x
        b += y * y
    }
    val cosine = if (a > 0 && b > 0) product / sqrt(a * b) else if (a == b) 1.0 else 0.0
    return mapOf("max_abs" to most, "cosine" to cosine)
}

private fun share(found: IntArray, reference: IntArray): Double = when {
    found.size != reference.size -> throw BundleException("the golden sample holds ${reference.size} tokens")
    found.any { it < 0 } || reference.any { it < 0 } -> Double.NaN
    else -> found.indices.count { found[it] == reference[it] }.toDouble() / found.size
}
