/** All that is seen: the screen draws it, and holds nothing else. */
package dev.edgevlm.demo

import android.graphics.Bitmap
import dev.edgevlm.core.Answer
import dev.edgevlm.core.Exchange
import dev.edgevlm.core.Memory
import java.util.Locale

/** [answer]: the one that is being made. [live]: about what the camera sees now. */
data class Screen(
    val models: List<String> = emptyList(),
    val model: String? = null,
    val photo: Bitmap? = null,
    val said: List<Exchange> = emptyList(),
    val question: String? = null,
    val answer: String = "",
    val status: String = "",
    val proof: String = "",
    val stages: String = "", // of the proof, a line for each
    val live: Boolean = false,
    val busy: Boolean = false,
) {
    /** The conversation, with the answer that is being made. */
    val talk: String
        get() = (said.map { "${it.question}\n${it.answer}" } + listOfNotNull(question?.let { "$it\n$answer" }))
            .joinToString("\n\n")

    /** Or, while an answer is made, stop it. */
    val canAsk: Boolean get() = question != null || !busy && model != null
}

/** What an answer took, and what the phone tells beside it. */
fun told(answer: Answer, device: Device): String {
    val parts = listOfNotNull(
        "first word after %.2f s".format(Locale.ROOT, answer.timings.firstTokenMs / 1000),
        "%d tokens, %.1f/s".format(Locale.ROOT, answer.ids.size, answer.timings.tokensPerSecond),
        Memory.now()?.let { "${it shr 20} MB" },
        device.temperature?.let { "battery %.1f °C".format(Locale.ROOT, it) },
        if (answer.stopReason == "stop") null else "ended by ${answer.stopReason}",
    )
    return parts.joinToString(" · ")
}
