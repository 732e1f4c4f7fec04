/** Which engine computes a bundle on this phone, and its proof: found when the bundle first opens, and kept. */
package dev.edgevlm.demo

import android.content.SharedPreferences
import dev.edgevlm.core.Bundle
import dev.edgevlm.core.Engine
import dev.edgevlm.core.OnnxEngine
import dev.edgevlm.core.Provider
import dev.edgevlm.core.Report
import dev.edgevlm.core.Session
import dev.edgevlm.core.Settings
import dev.edgevlm.core.choose
import dev.edgevlm.core.verify

private const val TRIED = "tried"

/** [version]: of the app, which brings the engines. */
class Engines(
    private val notes: SharedPreferences,
    private val device: Device,
    private val settings: Settings,
    private val version: String,
) {
    /** [say] is told where it takes long. Throws EdgeException. */
    fun of(bundle: Bundle, say: (String) -> Unit): Engine {
        val found = notes.getString("engine:${key(bundle)}", null)
        return Provider.entries.find { it.name == found }?.let(::OnnxEngine) ?: chosen(bundle, say)
    }

    /** The sentence and the table, as they were found before; of a bundle that was never proven, now. */
    fun proof(session: Session): String = notes.getString("proof:${key(session.bundle)}", null) ?: proven(session)

    /** The same, found now. */
    fun proven(session: Session): String {
        val report: Report = verify(session)
        val told = "${report.sentence()}\n${report.table()}"
        if (report.ok) notes.edit().putString("proof:${key(session.bundle)}", told).apply()
        return told
    }

    private fun key(bundle: Bundle) =
        "${bundle.manifest.source}:${bundle.manifest.parts.map { it.files[0].sha256 }}:$version"

    /** The fastest that computes the same model. */
    private fun chosen(bundle: Bundle, say: (String) -> Unit): Engine {
        say("Proving that this phone computes the same model…")
        // A driver that brought the process down is not asked again.
        notes.getString(TRIED, null)?.let { notes.edit().putBoolean("$TRIED:$it", true).commit() }
        val providers = OnnxEngine.available()
            .filter { it == Provider.CPU || !notes.getBoolean("$TRIED:${it.name}", false) }
        val engines = providers.map(::OnnxEngine)
        val choice = try {
            choose(engines, {
                notes.edit().putString(TRIED, providers[engines.indexOf(it)].name).commit()
                Session.open(bundle, it, settings, device.freeBytes)
            })
        } finally {
            notes.edit().remove(TRIED).apply()
        }
        val best = providers[engines.indexOf(choice.engine)]
        notes.edit().putString("engine:${key(bundle)}", best.name).apply()
        return choice.engine
    }
}
