/** The one screen. It shows what the assistant says, and holds nothing: rotation makes it anew. */
package dev.edgevlm.demo

import android.Manifest
import android.app.Activity
import android.app.AlertDialog
import android.content.ActivityNotFoundException
import android.content.Intent
import android.content.pm.PackageManager
import android.graphics.Bitmap
import android.os.Build
import android.os.Bundle
import android.provider.MediaStore
import android.view.View
import android.view.inputmethod.EditorInfo
import android.widget.Button
import android.widget.EditText
import android.widget.ImageView
import android.widget.ScrollView
import android.widget.TextView
import android.widget.Toast
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch

private const val PICK_IMAGES = "android.provider.action.PICK_IMAGES" // MediaStore.ACTION_PICK_IMAGES, of Android 13
private const val PICK = 1
private const val TAKE = 2
private const val ZIP = 3
private const val FOLDER = 4
private const val LIVE = 5

class MainActivity : Activity() {
    private val assistant get() = (application as DemoApp).assistant
    private var watch = CoroutineScope(Job() + Main)
    private var photo: Bitmap? = null // that is shown

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        setContentView(R.layout.main)
        insets(view(R.id.root))
        button(R.id.pick).setOnClickListener { pick() }
        button(R.id.take).setOnClickListener { withCamera(TAKE) }
        button(R.id.live).setOnClickListener { withCamera(LIVE) }
        text(R.id.proof).setOnClickListener { proof() }
        button(R.id.model).setOnClickListener { models() }
        button(R.id.bench).setOnClickListener { assistant.bench(null) }
        button(R.id.ask).setOnClickListener { if (assistant.screen.value.question == null) ask() else assistant.stop() }
        (view(R.id.question) as EditText).setOnEditorActionListener { _, action, _ ->
            (action == EditorInfo.IME_ACTION_SEND).also { if (it) ask() }
        }
        if (saved == null) told(intent)
    }

    override fun onNewIntent(intent: Intent) {
        super.onNewIntent(intent)
        told(intent)
    }

    override fun onStart() {
        super.onStart()
        watch = CoroutineScope(Job() + Main)
        watch.launch { assistant.screen.collect(::show) }
    }

    override fun onStop() {
        // A camera that nobody looks through is let go; one whose screen only turns goes on.
        if (assistant.screen.value.live && !isChangingConfigurations) assistant.stop()
        watch.cancel()
        super.onStop()
    }

    /**
     * `am start -n dev.edgevlm.demo/.MainActivity --es bench MODEL --ei repetitions 5`, as `edge bench --on` types it.
     * An empty MODEL is the one that is open.
     */
    private fun told(intent: Intent?) {
        val model = intent?.getStringExtra("bench") ?: return
        assistant.bench(model.ifEmpty { null }, intent.getIntExtra("repetitions", 5).coerceIn(1, 1000))
    }

    private fun show(screen: Screen) {
        if (screen.photo !== photo) (view(R.id.photo) as ImageView).setImageBitmap(screen.photo)
        photo = screen.photo
        val lines = screen.said.map { "${it.question}\n${it.answer}" } +
            listOfNotNull(screen.question?.let { "$it\n${screen.answer}" })
        text(R.id.talk).text = lines.joinToString("\n\n")
        text(R.id.status).text = screen.status
        text(R.id.proof).text = screen.proof
        button(R.id.ask).setText(if (screen.question == null) R.string.ask else R.string.stop)
        button(R.id.ask).isEnabled = screen.question != null || !screen.busy && screen.model != null
        for (id in listOf(R.id.pick, R.id.take, R.id.live, R.id.model, R.id.bench)) view(id).isEnabled = !screen.busy
        (view(R.id.scroll) as ScrollView).run { post { fullScroll(View.FOCUS_DOWN) } }
    }

    private fun ask() {
        assistant.ask(typed())
        (view(R.id.question) as EditText).setText("")
    }

    private fun typed(): String =
        (view(R.id.question) as EditText).text.toString().trim().ifEmpty { getString(R.string.question) }

    private fun pick() {
        val older = Intent(Intent.ACTION_GET_CONTENT).addCategory(Intent.CATEGORY_OPENABLE)
        start((if (Build.VERSION.SDK_INT >= 33) Intent(PICK_IMAGES) else older).setType("image/*"), PICK)
    }

    /** An app that names the permission may not even send a person to the camera's own app without it. */
    private fun withCamera(code: Int) {
        if (checkSelfPermission(Manifest.permission.CAMERA) != PackageManager.PERMISSION_GRANTED) {
            requestPermissions(arrayOf(Manifest.permission.CAMERA), code)
        } else if (code == LIVE) assistant.live(typed()) else take()
    }

    override fun onRequestPermissionsResult(code: Int, permissions: Array<String>, results: IntArray) {
        if (results.isEmpty()) return // the question was cut off
        if (results[0] == PackageManager.PERMISSION_GRANTED) withCamera(code)
        else assistant.refused(forGood = !shouldShowRequestPermissionRationale(Manifest.permission.CAMERA))
    }

    private fun proof() {
        val screen = assistant.screen.value
        if (screen.proof.isEmpty()) return
        AlertDialog.Builder(this).setTitle(screen.proof).setMessage(screen.stages)
            .setPositiveButton(R.string.again) { _, _ -> assistant.prove() }.show()
    }

    private fun take() {
        val flags = Intent.FLAG_GRANT_WRITE_URI_PERMISSION or Intent.FLAG_GRANT_READ_URI_PERMISSION
        val camera = Intent(MediaStore.ACTION_IMAGE_CAPTURE).putExtra(MediaStore.EXTRA_OUTPUT, PhotoProvider.URI)
        start(camera.addFlags(flags), TAKE)
    }

    private fun models() {
        val names = assistant.screen.value.models
        val choices = names + listOf("Import a zip…", "Import a folder…")
        val zip = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("application/zip")
        AlertDialog.Builder(this).setTitle(R.string.model).setItems(choices.toTypedArray()) { _, which ->
            when (which) {
                names.size -> start(zip, ZIP)
                names.size + 1 -> start(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), FOLDER)
                else -> assistant.choose(names[which])
            }
        }.show()
    }

    override fun onActivityResult(code: Int, result: Int, data: Intent?) {
        if (result != RESULT_OK) return
        val uri = if (code == TAKE) PhotoProvider.URI else data?.data ?: return
        when (code) {
            ZIP -> assistant.importZip(uri)
            FOLDER -> assistant.importFolder(uri)
            else -> assistant.look(uri)
        }
    }

    private fun start(intent: Intent, code: Int) = try {
        startActivityForResult(intent, code)
    } catch (_: ActivityNotFoundException) {
        Toast.makeText(this, "This phone has no app for that.", Toast.LENGTH_LONG).show()
    }

    /** The app is drawn behind the bars and the keyboard. */
    private fun insets(root: View) {
        val own = root.paddingLeft
        root.setOnApplyWindowInsetsListener { view, bars ->
            view.setPadding(
                own + bars.systemWindowInsetLeft,
                own + bars.systemWindowInsetTop,
                own + bars.systemWindowInsetRight,
                own + bars.systemWindowInsetBottom,
            )
            bars
        }
    }

    // The classes that this is compiled against have no generic findViewById.
    private fun view(id: Int): View = findViewById(id) as View

    private fun text(id: Int) = view(id) as TextView

    private fun button(id: Int) = view(id) as Button
}
