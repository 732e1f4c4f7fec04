/** An image becomes views: tiles of the vision encoder's size and the whole behind them, or the whole alone. */
package dev.edgevlm.core

import kotlin.math.ceil

/** Pixels `[1, 3, size, size]` of each: [rows] × [columns] tiles and the whole; or the whole alone, of no tiles. */
class Views(val pixels: List<FloatArray>, val rows: Int, val columns: Int)

/** Of an image, [most] views or fewer: where all its tiles are more, it is divided into fewer, larger ones. */
fun views(picture: Picture, spec: ImageSpec, most: Int): Views {
    val side = spec.size
    val sizes = sizes(picture, spec, most) ?: return Views(listOf(pixels(picture, spec)), 0, 0)
    val whole = sizes.fold(picture) { made, (width, height) -> resized(made, width, height, spec.resample) }
    val (rows, columns) = whole.height / side to whole.width / side
    val tiles = List(rows * columns) { whole.cut(side * (it % columns), side * (it / columns), side, side) }
    val seen = tiles + resized(whole, side, side, spec.resample)
    return Views(seen.map { normalised(it, spec) }, rows, columns)
}

/** What an image is resized to, one after another, before it is cut; null where no division has so few views. */
private fun sizes(picture: Picture, spec: ImageSpec, most: Int): List<Pair<Int, Int>>? {
    val grid = spec.views?.grid ?: return null
    for (tiles in grid downTo 2) {
        val long = if (tiles == grid) checkNotNull(spec.longEdge) else tiles * spec.size
        val first = longEdge(picture.width, picture.height, long)
        val whole = multiples(first, spec.size)
        if (whole.first / spec.size * (whole.second / spec.size) + 1 <= most) return listOf(first, whole)
    }
    return null
}

/** Both edges a multiple of [side]: the longer is rounded up, the other follows it by their ratio, and is too. */
private fun multiples(size: Pair<Int, Int>, side: Int): Pair<Int, Int> {
    val ratio = size.first.toDouble() / size.second
    fun up(edge: Int) = ceil(edge.toDouble() / side).toInt() * side
    if (size.first >= size.second) return up(size.first).let { it to up((it / ratio).toInt()) }
    return up(size.second).let { up((it * ratio).toInt()) to it }
}
