/** The screen on the framework's own classes. It shows what the assistant says, and holds nothing. */
package dev.edgevlm.demo

import android.Manifest
import android.app.Activity
import android.app.AlertDialog
import android.content.Intent
import android.content.pm.PackageManager
import android.graphics.Bitmap
import android.os.Bundle
import android.view.View
import android.view.inputmethod.EditorInfo
import android.widget.Button
import android.widget.EditText
import android.widget.ImageView
import android.widget.ScrollView
import android.widget.TextView
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch

// What the camera is asked for.
private const val TAKE = 1
private const val LIVE = 2

class MainActivity : Activity() {
    private val assistant get() = (application as DemoApp).assistant
    private var watch = CoroutineScope(Job() + Main)
    private var photo: Bitmap? = null // that is shown

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        setContentView(R.layout.main)
        insets(view(R.id.root))
        button(R.id.pick).setOnClickListener { start(Errand.PICK) }
        button(R.id.take).setOnClickListener { withCamera(TAKE) }
        button(R.id.live).setOnClickListener { withCamera(LIVE) }
        text(R.id.proof).setOnClickListener { proof() }
        button(R.id.model).setOnClickListener { models() }
        button(R.id.bench).setOnClickListener { assistant.bench(null) }
        button(R.id.ask).setOnClickListener { if (assistant.screen.value.question == null) ask() else assistant.stop() }
        (view(R.id.question) as EditText).setOnEditorActionListener { _, action, _ ->
            (action == EditorInfo.IME_ACTION_SEND).also { if (it) ask() }
        }
        if (saved == null) assistant.told(intent)
    }

    override fun onNewIntent(intent: Intent) {
        super.onNewIntent(intent)
        assistant.told(intent)
    }

    override fun onStart() {
        super.onStart()
        watch = CoroutineScope(Job() + Main)
        watch.launch { assistant.screen.collect(::show) }
    }

    override fun onStop() {
        if (!isChangingConfigurations) assistant.leave() // a live camera whose screen only turns goes on
        watch.cancel()
        super.onStop()
    }

    private fun show(screen: Screen) {
        if (screen.photo !== photo) (view(R.id.photo) as ImageView).setImageBitmap(screen.photo)
        photo = screen.photo
        text(R.id.talk).text = screen.talk
        text(R.id.status).text = screen.status
        text(R.id.proof).text = screen.proof
        button(R.id.ask).setText(if (screen.question == null) R.string.ask else R.string.stop)
        button(R.id.ask).isEnabled = screen.canAsk
        for (id in listOf(R.id.pick, R.id.take, R.id.live, R.id.model, R.id.bench)) view(id).isEnabled = !screen.busy
        (view(R.id.scroll) as ScrollView).run { post { fullScroll(View.FOCUS_DOWN) } }
    }

    private fun ask() {
        assistant.ask(typed())
        (view(R.id.question) as EditText).setText("")
    }

    private fun typed(): String =
        (view(R.id.question) as EditText).text.toString().trim().ifEmpty { getString(R.string.question) }

    /** An app that names the permission may not even send a person to the camera's own app without it. */
    private fun withCamera(code: Int) {
        if (checkSelfPermission(Manifest.permission.CAMERA) != PackageManager.PERMISSION_GRANTED) {
            requestPermissions(arrayOf(Manifest.permission.CAMERA), code)
        } else if (code == LIVE) assistant.live(typed()) else start(Errand.TAKE)
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

    private fun models() {
        val names = assistant.screen.value.models
        val choices = names + listOf(getString(R.string.zip), getString(R.string.folder))
        AlertDialog.Builder(this).setTitle(R.string.model).setItems(choices.toTypedArray()) { _, which ->
            when (which) {
                names.size -> start(Errand.ZIP)
                names.size + 1 -> start(Errand.FOLDER)
                else -> assistant.choose(names[which])
            }
        }.show()
    }

    override fun onActivityResult(code: Int, result: Int, data: Intent?) =
        Errand.entries[code].done(assistant, result, data)

    private fun start(errand: Errand) = errand.start(this) { startActivityForResult(it, errand.ordinal) }

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
