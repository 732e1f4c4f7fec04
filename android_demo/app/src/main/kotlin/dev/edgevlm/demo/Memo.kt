/** What comes back after the process was killed: the bundle, the photo, and what was said about it. */
package dev.edgevlm.demo

import android.graphics.Bitmap
import android.graphics.BitmapFactory
import dev.edgevlm.core.Exchange
import dev.edgevlm.core.Json
import java.io.File
import java.io.IOException

class Memo(private val folder: File) {
    private val talk = File(folder, "talk.json")
    private val image = File(folder, "photo.png")

    init {
        folder.mkdirs()
    }

    fun photo(): Bitmap? = if (image.exists()) BitmapFactory.decodeFile(image.path) else null

    /** PNG keeps the very pixels: what the decoder had computed of them would be computed again. */
    fun keep(photo: Bitmap) = whole(image) { file ->
        file.outputStream().use { photo.compress(Bitmap.CompressFormat.PNG, 0, it) }
    }

    fun keep(exchanges: List<Exchange>) = whole(talk) { file ->
        file.writeText(Json.write(exchanges.map {
            mapOf("question" to it.question, "answer" to it.answer, "ids" to it.ids?.asList())
        }))
    }

    fun exchanges(): List<Exchange> = try {
        (Json.parse(talk.readText()) as List<*>).map { told ->
            val map = told as Map<*, *>
            val ids = (map["ids"] as? List<*>)?.map { (it as Long).toInt() }?.toIntArray()
            Exchange(map["question"] as String, map["answer"] as String, ids)
        }
    } catch (_: IOException) {
        emptyList()
    } catch (_: RuntimeException) { // a file of another version of this app
        emptyList()
    }

    /** A process that is killed leaves the old file or the new one. */
    private fun whole(file: File, write: (File) -> Unit) {
        val beside = File(folder, file.name + ".part")
        write(beside)
        beside.renameTo(file)
    }
}
