/** What other apps do for this one, and what this one does for `edge bench --on`: intents, the same of both screens. */
package dev.edgevlm.demo

import android.app.Activity
import android.content.ActivityNotFoundException
import android.content.Context
import android.content.Intent
import android.net.Uri
import android.os.Build
import android.provider.MediaStore
import android.widget.Toast

private const val PICK_IMAGES = "android.provider.action.PICK_IMAGES" // MediaStore.ACTION_PICK_IMAGES, of Android 13

/** [intent] asks another app, and the assistant makes use of what it gives. */
enum class Errand(private val intent: () -> Intent, private val use: Assistant.(Uri) -> Unit) {
    PICK(::pick, Assistant::look),
    TAKE(::take, Assistant::look),
    ZIP(::zip, Assistant::importZip),
    FOLDER({ Intent(Intent.ACTION_OPEN_DOCUMENT_TREE) }, Assistant::importFolder);

    /** [send]: to the system, whose answer [done] is told. */
    fun start(context: Context, send: (Intent) -> Unit) = try {
        send(intent())
    } catch (_: ActivityNotFoundException) {
        Toast.makeText(context, "This phone has no app for that.", Toast.LENGTH_LONG).show()
    }

    fun done(assistant: Assistant, result: Int, data: Intent?) {
        if (result != Activity.RESULT_OK) return
        val uri = if (this == TAKE) PhotoProvider.URI else data?.data ?: return
        assistant.use(uri)
    }
}

/**
 * `am start -n dev.edgevlm.demo/.MainActivity --es bench MODEL --ei repetitions 5`, as `edge bench --on` types it.
 * An empty MODEL is the one that is open.
 */
fun Assistant.told(intent: Intent?) {
    val model = intent?.getStringExtra("bench") ?: return
    bench(model.ifEmpty { null }, intent.getIntExtra("repetitions", 5).coerceIn(1, 1000))
}

private fun pick(): Intent {
    val older = Intent(Intent.ACTION_GET_CONTENT).addCategory(Intent.CATEGORY_OPENABLE)
    return (if (Build.VERSION.SDK_INT >= 33) Intent(PICK_IMAGES) else older).setType("image/*")
}

private fun take(): Intent {
    val flags = Intent.FLAG_GRANT_WRITE_URI_PERMISSION or Intent.FLAG_GRANT_READ_URI_PERMISSION
    val camera = Intent(MediaStore.ACTION_IMAGE_CAPTURE).putExtra(MediaStore.EXTRA_OUTPUT, PhotoProvider.URI)
    return camera.addFlags(flags)
}

private fun zip() =
    Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("application/zip")
