/** Chooses what computes: the processor, unless another provider proves to be the same model, and faster. */
package dev.edgevlm.core

/** What became of a candidate: its proof and its time, or why it does not run. */
class Trial(val engine: Engine, val report: Report?, val seconds: Double?, val failure: String?)

class Choice(val engine: Engine, val trials: List<Trial>)

/**
 * Opens the bundle with each of [candidates], of which the first computes where none is better. One that computes
 * another model, fails, or is no faster is left. Throws EdgeException when the first fails, or is another model.
 */
fun choose(
    candidates: List<Engine>,
    open: (Engine) -> Session,
    stop: Stop = Stop(),
    clock: () -> Long = System::nanoTime,
): Choice {
    val trials = candidates.mapIndexed { place, engine ->
        try {
            open(engine).use { trial(engine, it, stop, clock) }
        } catch (error: EngineException) {
            if (place == 0) throw error
            Trial(engine, null, null, error.message)
        }
    }
    trials[0].report?.let { if (!it.ok) throw EngineException(it.sentence().trimEnd('.'), "another bundle") }
    return Choice(trials.filter { it.report?.ok == true }.minByOrNull { it.seconds!! }!!.engine, trials)
}

private fun trial(engine: Engine, session: Session, stop: Stop, clock: () -> Long): Trial {
    val report = verify(session, stop)
    if (!report.ok) return Trial(engine, report, null, report.sentence())
    // The first proof has warmed it up. What a proof computes is what an answer is made of.
    val before = clock()
    verify(session, stop)
    return Trial(engine, report, (clock() - before) / 1e9, null)
}
