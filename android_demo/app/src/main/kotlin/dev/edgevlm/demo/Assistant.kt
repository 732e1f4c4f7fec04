/** What the screen shows and asks for: bundles, a photo, a conversation. Called on the main thread; never throws. */
package dev.edgevlm.demo

import android.content.Context
import android.graphics.Bitmap
import android.net.Uri
import dev.edgevlm.core.Answer
import dev.edgevlm.core.Bench
import dev.edgevlm.core.BundleException
import dev.edgevlm.core.Bundle
import dev.edgevlm.core.Chat
import dev.edgevlm.core.EdgeException
import dev.edgevlm.core.Engine
import dev.edgevlm.core.Event
import dev.edgevlm.core.Exchange
import dev.edgevlm.core.Json
import dev.edgevlm.core.Memory
import dev.edgevlm.core.OnnxEngine
import dev.edgevlm.core.Provider
import dev.edgevlm.core.Session
import dev.edgevlm.core.Settings
import dev.edgevlm.core.StoppedException
import dev.edgevlm.core.Store
import dev.edgevlm.core.UsageException
import dev.edgevlm.core.choose
import dev.edgevlm.core.verify
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import java.io.File
import java.util.Locale
import java.util.concurrent.Executors

private const val DEMO = "demo"
private const val CHOSEN = "chosen"
private const val TRIED = "tried"

/** All that is seen. [answer]: the one that is being made. */
data class Screen(
    val models: List<String> = emptyList(),
    val model: String? = null,
    val photo: Bitmap? = null,
    val said: List<Exchange> = emptyList(),
    val question: String? = null,
    val answer: String = "",
    val status: String = "",
    val proof: String = "",
    val busy: Boolean = false,
)

class Assistant(private val context: Context) {
    private val engineThread = Executors.newSingleThreadExecutor { Thread(it, "engine") }.asCoroutineDispatcher()
    private val scope = CoroutineScope(SupervisorJob() + Main)
    private val device = Device(context)
    private val notes = context.getSharedPreferences("notes", Context.MODE_PRIVATE)
    private val memo = Memo(File(context.filesDir, "memo"))
    private val store by lazy { Store(File(context.filesDir, "bundles")) }
    private val settings by lazy { Settings(device.threads) }
    private val shown = MutableStateFlow(Screen())
    private var session: Session? = null // on the engine's thread, as the two below
    private var engine: Engine = OnnxEngine()
    private var chat: Chat? = null
    private var job: Job? = null

    val screen: StateFlow<Screen> get() = shown

    init {
        work("Opening…") {
            unpack()
            val photo = memo.photo()
            show { it.copy(photo = photo, said = memo.exchanges()) }
            val names = store.bundles().map { it.folder.name }
            val name = notes.getString(CHOSEN, DEMO).takeIf { it in names } ?: names.firstOrNull()
            open(name ?: throw BundleException("there is no model yet", "the Model button"))
            chat = Chat(session!!, photo?.let(::picture), shown.value.said)
        }
    }

    /** The bundle that came with this version of the app. */
    private fun unpack() {
        val there = store.bundles().any { it.folder.name == DEMO } && notes.getString(DEMO, null) == version()
        val files = if (there) emptyList() else offered(context.assets, DEMO)
        if (files.isEmpty()) return
        store.add(DEMO, files, OnnxEngine())
        notes.edit().putString(DEMO, version()).apply()
    }

    fun choose(name: String) = work("Opening $name…") {
        open(name)
        begin(shown.value.photo)
    }

    fun importZip(uri: Uri) = work("Importing…") {
        val name = name(context.contentResolver, uri)
        val stream = context.contentResolver.openInputStream(uri) ?: throw BundleException("the file cannot be read")
        val bundle = stream.use { store.addZip(name, it, OnnxEngine(), progress = ::share) }
        open(bundle.folder.name)
        begin(shown.value.photo)
    }

    fun importFolder(tree: Uri) = work("Importing…") {
        val name = tree.lastPathSegment.orEmpty().substringAfterLast('/').substringAfterLast(':')
        val bundle = store.add(name, offered(context.contentResolver, tree), OnnxEngine(), progress = ::share)
        open(bundle.folder.name)
        begin(shown.value.photo)
    }

    fun look(uri: Uri) = work("Reading the photo…") {
        val photo = photo(context.contentResolver, uri)
        memo.keep(photo)
        begin(photo)
    }

    fun ask(question: String) = work("Thinking…") {
        val chat = chat ?: throw UsageException("no model is open", "the Model button")
        show { it.copy(question = question, answer = "") }
        try {
            withContext(Main) {
                chat.stream(question, engineThread).collect { event ->
                    when (event) {
                        is Event.Text -> show { it.copy(answer = it.answer + event.piece) }
                        is Event.Done -> show { it.copy(status = told(event.answer)) }
                    }
                }
            }
            memo.keep(chat.exchanges)
            show { it.copy(said = chat.exchanges.toList(), question = null, answer = "") }
        } finally {
            show { it.copy(question = null) }
        }
    }

    fun stop() {
        job?.cancel()
    }

    /**
     * Writes `bench.json` where `adb pull` finds it. [model]: a name; the folder of a bundle that lies beside that
     * file, which need not be imported; or null for the one that is open.
     */
    fun bench(model: String?, repetitions: Int = 5) = work("Measuring…") {
        val folder = context.getExternalFilesDir(null) ?: throw UsageException("there is no storage to write to")
        val (part, file) = File(folder, "bench.json.part") to File(folder, "bench.json")
        file.delete()
        try {
            if (model != null) open(model, beside(folder, model))
            val own = session ?: throw UsageException("no model is open", "the Model button")
            val bench = Bench(own, engine.name, settings, device.name, version(), repetitions, { device.temperature })
            part.writeText(bench.json(bench.rows { say("Measuring: $it") }))
        } catch (error: Exception) {
            val sentence = (error as? EdgeException)?.sentence ?: error.toString()
            part.writeText(Json.write(mapOf("error" to sentence)) + "\n")
            throw error
        } finally {
            part.renameTo(file)
        }
        begin(shown.value.photo)
        say("Measured: $file")
    }

    /** The system is short of memory. */
    fun trim() {
        scope.launch(engineThread) { session?.trim() }
    }

    /** A bundle in our folder of the shared storage; null where [path] leads elsewhere. */
    private fun beside(folder: File, path: String): Bundle? =
        File(path).canonicalFile.takeIf { it.startsWith(folder.canonicalFile) }?.let(Bundle::open)

    private fun open(name: String, elsewhere: Bundle? = null) {
        session?.close()
        session = null
        chat = null
        val bundle = elsewhere ?: store.find(name) ?: throw BundleException("there is no model $name", "import it")
        val key = "${bundle.manifest.source}:${bundle.manifest.parts.map { it.files[0].sha256 }}:${version()}"
        engine = known(key) ?: chosen(bundle, key)
        val opened = Session.open(bundle, engine, settings, device.freeBytes, ::share)
        session = opened
        val proof = notes.getString("proof:$key", null) ?: verify(opened).let { report ->
            report.sentence().also { if (report.ok) notes.edit().putString("proof:$key", it).apply() }
        }
        if (elsewhere == null) notes.edit().putString(CHOSEN, name).apply()
        val names = store.bundles().map { it.folder.name }
        val proven = "$proof ${engine.name} ${OnnxEngine.version()}"
        show { it.copy(models = names, model = bundle.folder.name, proof = proven, status = "") }
    }

    /** What was found to be the fastest that computes the same model. */
    private fun known(key: String): Engine? =
        notes.getString("engine:$key", null)?.let { name -> Provider.entries.find { it.name == name } }
            ?.let(::OnnxEngine)

    private fun chosen(bundle: Bundle, key: String): Engine {
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
        notes.edit().putString("engine:$key", providers[engines.indexOf(choice.engine)].name).apply()
        return choice.engine
    }

    private fun begin(photo: Bitmap?) {
        memo.keep(emptyList())
        chat = session?.let { Chat(it, photo?.let(::picture)) }
        show { it.copy(photo = photo, said = emptyList(), answer = "") }
    }

    /** One at a time; whatever goes wrong becomes a sentence on the screen. */
    private fun work(what: String, block: suspend () -> Unit) {
        val before = job
        job = scope.launch {
            before?.join()
            show { it.copy(busy = true, status = what) }
            val status = try {
                withContext(engineThread) { block() }
                shown.value.status.takeIf { it != what }.orEmpty()
            } catch (_: StoppedException) {
                "Stopped."
            } catch (error: EdgeException) {
                error.sentence
            } catch (_: OutOfMemoryError) {
                "There is not enough memory. Try: a smaller photo or model."
            } catch (error: CancellationException) {
                show { it.copy(busy = false, status = "Stopped.") }
                throw error
            } catch (error: Exception) {
                "Something failed: ${error.message ?: error.javaClass.simpleName}."
            }
            show { it.copy(busy = false, status = status) }
        }
    }

    private fun told(answer: Answer): String {
        val parts = listOfNotNull(
            "first word after %.2f s".format(Locale.ROOT, answer.timings.firstTokenMs / 1000),
            "%d tokens, %.1f/s".format(Locale.ROOT, answer.ids.size, answer.timings.tokensPerSecond),
            Memory.now()?.let { "${it shr 20} MB" },
            device.temperature?.let { "battery %.1f °C".format(Locale.ROOT, it) },
            if (answer.stopReason == "stop") null else "ended by ${answer.stopReason}",
        )
        return parts.joinToString(" · ")
    }

    private fun share(done: Double) = say("Checking: %d %%".format(Locale.ROOT, (100 * done).toInt()))

    private fun say(status: String) = show { it.copy(status = status) }

    private fun show(change: (Screen) -> Screen) = shown.update(change)

    private fun version(): String = context.packageManager.getPackageInfo(context.packageName, 0).versionName ?: "0"
}
