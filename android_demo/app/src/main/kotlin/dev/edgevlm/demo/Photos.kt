/** Photos as Android gives them: decoded, upright, on white, and no larger than the model can use. */
package dev.edgevlm.demo

import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Matrix
import android.media.ExifInterface
import android.net.Uri
import dev.edgevlm.core.ImageException
import dev.edgevlm.core.PHOTO_HEAD
import dev.edgevlm.core.Picture
import dev.edgevlm.core.sampleSize
import dev.edgevlm.core.undecodable
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream

/** Throws ImageException, as a sentence, on whatever cannot be shown. */
fun photo(resolver: ContentResolver, uri: Uri): Bitmap {
    val bounds = BitmapFactory.Options().apply { inJustDecodeBounds = true }
    opened(resolver, uri) { BitmapFactory.decodeStream(it, null, bounds) }
    if (bounds.outWidth < 1 || bounds.outHeight < 1) throw undecodable(opened(resolver, uri, ::head))
    val options = BitmapFactory.Options().apply { inSampleSize = sampleSize(bounds.outWidth, bounds.outHeight) }
    val bitmap = try {
        opened(resolver, uri) { BitmapFactory.decodeStream(it, null, options) }
    } catch (error: OutOfMemoryError) {
        val size = "${bounds.outWidth} × ${bounds.outHeight}"
        throw ImageException("a photo of $size is too large", "a smaller one", error)
    } ?: throw ImageException("this photo is damaged", "another one")
    val turn = opened(resolver, uri, ::turn)
    if (turn.isIdentity) return flat(bitmap)
    return flat(Bitmap.createBitmap(bitmap, 0, 0, bitmap.width, bitmap.height, turn, true))
}

fun picture(bitmap: Bitmap): Picture {
    val width = bitmap.width
    val rgb = ByteArray(3 * width * bitmap.height)
    val row = IntArray(width) // all rows at once would take more than the result
    for (y in 0 until bitmap.height) {
        bitmap.getPixels(row, 0, width, 0, y, width, 1)
        for (i in 0 until 3 * width) rgb[3 * y * width + i] = (row[i / 3] shr (16 - 8 * (i % 3))).toByte()
    }
    return Picture(width, bitmap.height, rgb)
}

/** To be shown. */
fun bitmap(picture: Picture): Bitmap {
    val colours = IntArray(picture.width * picture.height) { place ->
        (0..2).fold(255) { made, c -> made shl 8 or (picture.rgb[3 * place + c].toInt() and 255) }
    }
    return Bitmap.createBitmap(colours, picture.width, picture.height, Bitmap.Config.ARGB_8888)
}

/** How the file begins; less where it ends. */
private fun head(stream: InputStream): ByteArray {
    val bytes = ByteArray(PHOTO_HEAD)
    var read = 0
    while (read < bytes.size) {
        val count = stream.read(bytes, read, bytes.size - read)
        if (count < 0) break
        read += count
    }
    return bytes.copyOf(read)
}

private fun <T> opened(resolver: ContentResolver, uri: Uri, read: (InputStream) -> T): T = try {
    val stream = resolver.openInputStream(uri) ?: throw FileNotFoundException("nothing is there")
    stream.use(read)
} catch (error: IOException) {
    throw ImageException("the photo cannot be read: ${error.message}", "pick it again", error)
} catch (error: SecurityException) {
    throw ImageException("the photo may not be read any more", "pick it again", error)
}

/** What its EXIF orientation asks for. */
private fun turn(stream: InputStream): Matrix {
    // The constructor that takes a stream is newer than the classes that this is compiled against.
    val exif = try {
        ExifInterface::class.java.getConstructor(InputStream::class.java).newInstance(stream)
    } catch (_: ReflectiveOperationException) {
        return Matrix() // a damaged block: the photo itself is whole
    }
    val orientation = exif.getAttributeInt(ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL)
    return Matrix().apply {
        if (orientation in listOf(2, 5, 7)) postScale(-1f, 1f)
        if (orientation == 4) postScale(1f, -1f)
        when (orientation) {
            3 -> postRotate(180f)
            6, 7 -> postRotate(90f)
            5, 8 -> postRotate(270f)
        }
    }
}

/** A cut-out is looked at on white. */
private fun flat(bitmap: Bitmap): Bitmap {
    if (!bitmap.hasAlpha() && bitmap.config == Bitmap.Config.ARGB_8888) return bitmap
    val made = Bitmap.createBitmap(bitmap.width, bitmap.height, Bitmap.Config.ARGB_8888)
    Canvas(made).apply {
        drawColor(Color.WHITE)
        drawBitmap(bitmap, 0f, 0f, null)
    }
    return made
}
