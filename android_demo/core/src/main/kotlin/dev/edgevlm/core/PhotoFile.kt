/** Files of photos before they are decoded: how much smaller, and what a phone cannot decode. */
package dev.edgevlm.core

private const val SIDE = 2048 // pixels: more than any vision encoder sees
private val HEIF = setOf("heic", "heix", "hevc", "heim", "heis", "mif1", "msf1")
const val PHOTO_HEAD = 12 // bytes of a file that tell what it is

/**
 * By what both edges of a photo are divided as it is decoded, a power of two: the longer one becomes 2,048 to 4,095
 * pixels, or stays below. Of a photo of any size no more than 17 million are ever in memory.
 */
fun sampleSize(width: Int, height: Int): Int = Integer.highestOneBit(maxOf(1, maxOf(width, height) / SIDE))

/** Of a file that this system cannot decode: [head] is how it begins. */
fun undecodable(head: ByteArray): ImageException {
    val brand = if (head.size >= PHOTO_HEAD) String(head, 4, 8, Charsets.ISO_8859_1) else ""
    val kind = when {
        head.isEmpty() -> return ImageException("this photo is empty", "another one")
        brand.startsWith("ftyp") && brand.drop(4) in HEIF -> "a HEIC, which this Android cannot decode"
        brand.startsWith("ftypavi") -> "an AVIF, which this Android cannot decode"
        else -> "of no kind that this Android decodes, or damaged"
    }
    return ImageException("this photo is $kind", "a JPEG or PNG of it")
}
