/** Benchmark: rows as `edge bench -o json` writes them, under its names, for `edge bench --compare` to read. */
package dev.edgevlm.core

import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone
import kotlin.math.sqrt

private const val SCHEMA = 1
private const val PROMPT = 190
private const val GENERATED = 64

/** [temperature]: in °C, where the system tells; [device], [version] and [engine] for people. */
class Bench(
    private val session: Session,
    private val engine: String,
    private val settings: Settings,
    private val device: String,
    private val version: String,
    private val repetitions: Int = 5,
    private val temperature: () -> Double? = { null },
    private val stop: Stop = Stop(),
) {
    private val manifest = session.bundle.manifest
    private val golden = Golden.load(session.bundle.file(manifest.golden))
    private val image = if (manifest.sees) golden.picture else null
    private val facts = LinkedHashMap<String, Any>()

    /** All rows. [progress] is told what is measured. Throws EdgeException. */
    fun rows(progress: (String) -> Unit = {}): List<Map<String, Any>> {
        facts += facts()
        val report = verify(session, stop)
        if (report.rows.any { !it.finite }) throw EngineException(report.sentence().trimEnd('.'), "another bundle")
        facts["agreement_cosine"] = report.error("prefill", "fp32").getValue("cosine")
        facts["agreement_tokens"] = report.error("tokens", "fp32").getValue("tokens")
        val rows = ArrayList<Map<String, Any>>()
        Memory.peak()?.let { rows += mapOf("test" to "peak memory") + facts + counts(0, 0) + mapOf("peak_bytes" to it) }
        for (measure in listOf(::seeing, ::prefilling, ::generating, ::firstToken)) {
            progress("${rows.size} measured")
            rows += measure()
        }
        return rows
    }

    fun json(rows: List<Map<String, Any>>) = rows.joinToString(",\n", "[\n", "\n]\n", transform = Json::write)

    private fun facts(): Map<String, Any> = mapOf(
        "schema" to SCHEMA,
        "build_commit" to "edge-vlm android $version",
        "cpu_info" to device,
        "device" to device,
        "model_filename" to session.bundle.folder.name,
        "model_type" to "${manifest.name} ${manifest.parts.joinToString("+") { it.scheme }}",
        "model_size" to manifest.parts.sumOf { part -> part.files.sumOf { it.bytes } },
        "recipe" to manifest.recipe,
        "backends" to engine,
        "n_threads" to settings.threads,
        "context" to session.model.context,
    )

    private fun seeing(): List<Map<String, Any>> {
        val picture = image ?: return emptyList()
        return listOf(
            timed("preprocess", 0, 0, {}) { session.views(picture) },
            timed("vision encode", 0, 0, {}) { session.model.see(golden.pixelValues, stop) },
        )
    }

    private fun prefilling(): List<Map<String, Any>> {
        val count = minOf(PROMPT, session.model.context)
        val prompt = prompt(count)
        return listOf(timed("pp$count", count, 0, { session.model.rewind(0) }) { session.model.extend(prompt, stop) })
    }

    private fun generating(): List<Map<String, Any>> {
        val count = minOf(GENERATED, session.model.context)
        return listOf(timed("tg$count", 0, count, { session.model.rewind(0) }) {
            var id = manifest.prompt.bosId ?: 0
            repeat(count) { id = argmax(session.model.extend(listOf(Segment.Tokens(intArrayOf(id))), stop)) }
        })
    }

    private fun firstToken(): List<Map<String, Any>> =
        listOf(timed("first token", 0, 0, { session.forget() }) {
            Chat(session, image).ask(manifest.goldenQuestion, Ask(maxTokens = 1), stop)
        })

    /** The golden prompt's first positions; of one that is shorter, its last text again and again. */
    private fun prompt(count: Int): List<Segment> {
        val width = manifest.decoder.hidden
        val whole = manifest.goldenSegments.map { ids ->
            if (ids != null) Segment.Tokens(ids.toIntArray())
            else Segment.Rows(golden.fp32.imageEmbeds, "golden", golden.fp32.imageEmbeds.size / width)
        }
        var left = count
        return (whole.asSequence() + generateSequence(whole.last()) { it }).takeWhile { left > 0 }.map { segment ->
            val taken = minOf(left, segment.count)
            left -= taken
            when (segment) {
                is Segment.Tokens -> Segment.Tokens(segment.ids.copyOf(taken))
                is Segment.Rows -> Segment.Rows(segment.values.copyOf(taken * width), segment.key, taken)
            }
        }.toList()
    }

    /** One run that is not counted, then the repetitions; their row. */
    private fun timed(
        test: String,
        prompt: Int,
        generated: Int,
        before: () -> Unit,
        work: () -> Unit,
    ): Map<String, Any> {
        before()
        work()
        val samples = List(repetitions) {
            stop.check()
            before()
            val start = System.nanoTime()
            work()
            System.nanoTime() - start
        }
        val row = LinkedHashMap<String, Any>(mapOf("test" to test) + facts + counts(prompt, generated))
        row["test_time"] = now()
        row += spread("ns", samples.map { it.toDouble() }) { Math.round(it) }
        val tokens = prompt + generated
        if (tokens > 0) row += spread("ts", samples.map { 1e9 * tokens / it }) { it }
        temperature()?.let { row["temp_c"] = it }
        return row
    }

    private fun counts(prompt: Int, generated: Int) = mapOf("n_prompt" to prompt, "n_gen" to generated, "n_depth" to 0)

    private fun spread(unit: String, samples: List<Double>, rounded: (Double) -> Any): Map<String, Any> {
        val mean = samples.average()
        val found = linkedMapOf("avg_$unit" to rounded(mean), "samples_$unit" to samples.map(rounded))
        if (samples.size > 1) {
            found["stddev_$unit"] = rounded(sqrt(samples.sumOf { (it - mean) * (it - mean) } / (samples.size - 1)))
        }
        return found
    }

    private fun now(): String = SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss'Z'", Locale.ROOT)
        .apply { timeZone = TimeZone.getTimeZone("UTC") }.format(Date())
}
