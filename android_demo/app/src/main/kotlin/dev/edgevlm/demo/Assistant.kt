/** What the screen shows and asks for: bundles, a photo, a conversation. Called on the main thread; never throws. */
package dev.edgevlm.demo

import android.content.Context
import android.graphics.Bitmap
import android.net.Uri
import dev.edgevlm.core.Bench
import dev.edgevlm.core.BundleException
import dev.edgevlm.core.Bundle
import dev.edgevlm.core.Chat
import dev.edgevlm.core.EdgeException
import dev.edgevlm.core.Engine
import dev.edgevlm.core.Event
import dev.edgevlm.core.Frames
import dev.edgevlm.core.Json
import dev.edgevlm.core.OnnxEngine
import dev.edgevlm.core.Session
import dev.edgevlm.core.Settings
import dev.edgevlm.core.StoppedException
import dev.edgevlm.core.Store
import dev.edgevlm.core.UsageException
import dev.edgevlm.core.refusedCamera
import dev.edgevlm.core.watch
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

class Assistant(private val context: Context) {
    private val engineThread = Executors.newSingleThreadExecutor { Thread(it, "engine") }.asCoroutineDispatcher()
    private val scope = CoroutineScope(SupervisorJob() + Main)
    private val device = Device(context)
    private val notes = context.getSharedPreferences("notes", Context.MODE_PRIVATE)
    private val memo = Memo(File(context.filesDir, "memo"))
    private val store by lazy { Store(File(context.filesDir, "bundles")) }
    private val settings by lazy { Settings(device.threads) }
    private val engines by lazy { Engines(notes, device, settings, version()) }
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
                        is Event.Done -> show { it.copy(status = told(event.answer, device)) }
                        is Event.Look -> Unit
                    }
                }
            }
            memo.keep(chat.exchanges)
            show { it.copy(said = chat.exchanges.toList(), question = null, answer = "") }
        } finally {
            show { it.copy(question = null) }
        }
    }

    /** Answers about what the camera sees now, until [stop]. Its permission must have been given. */
    fun live(question: String) = work("Looking…") {
        val session = session ?: throw UsageException("no model is open", "the Model button")
        val frames = Frames()
        var failure: EdgeException? = null
        val camera = Camera(context, frames) { error ->
            failure = error
            frames.end()
        }
        show { it.copy(live = true, said = emptyList(), question = question, answer = "") }
        try {
            camera.start()
            withContext(Main) { watch(session, frames, question, engineThread).collect { glance(it, frames) } }
            failure?.let { throw it }
        } finally {
            camera.stop()
            show { it.copy(live = false, question = null) }
            shown.value.photo?.let(memo::keep)
            begin(shown.value.photo)
        }
    }

    private fun glance(event: Event, frames: Frames) {
        when (event) {
            is Event.Look -> bitmap(event.picture).let { seen -> show { it.copy(photo = seen, answer = "") } }
            is Event.Text -> show { it.copy(answer = it.answer + event.piece) }
            is Event.Done -> say("${told(event.answer, device)} · ${frames.dropped} frames passed over")
        }
    }

    /** The camera may not be used. [forGood]: the system will not ask again. */
    fun refused(forGood: Boolean) = say(refusedCamera(forGood).sentence)

    /** Replays the golden sample now. */
    fun prove() = work("Proving that this phone computes the same model…") {
        tell(engines.proven(session ?: throw UsageException("no model is open", "the Model button")))
    }

    fun stop() {
        job?.cancel()
    }

    /** Nobody looks: the camera is let go. */
    fun leave() {
        if (shown.value.live) stop()
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
        engine = engines.of(bundle, ::say)
        val opened = Session.open(bundle, engine, settings, device.freeBytes, ::share)
        session = opened
        if (elsewhere == null) notes.edit().putString(CHOSEN, name).apply()
        val names = store.bundles().map { it.folder.name }
        show { it.copy(models = names, model = bundle.folder.name, status = "") }
        tell(engines.proof(opened))
    }

    /** A proof's sentence with what has computed it, and the table of its stages. */
    private fun tell(proof: String) {
        val sentence = proof.substringBefore('\n') + " ${engine.name} ${OnnxEngine.version()}"
        show { it.copy(proof = sentence, stages = proof.substringAfter('\n')) }
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

    private fun share(done: Double) = say("Checking: %d %%".format(Locale.ROOT, (100 * done).toInt()))

    private fun say(status: String) = show { it.copy(status = status) }

    private fun show(change: (Screen) -> Screen) = shown.update(change)

    private fun version(): String = context.packageManager.getPackageInfo(context.packageName, 0).versionName ?: "0"
}
