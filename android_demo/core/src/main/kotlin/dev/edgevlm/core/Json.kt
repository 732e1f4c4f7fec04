/** JSON: a strict reader, a writer, and fields of objects that are missing or of another type by name. */
package dev.edgevlm.core

/** A document as Map, List, String, Long, Double, Boolean and null. */
class Json private constructor(private val text: String, private val unique: Boolean) {
    private var at = 0
    private var depth = 0

    private fun value(): Any? {
        space()
        return when (val c = text.getOrElse(at) { fail("it ends early") }) {
            '{' -> members()
            '[' -> ArrayList<Any?>().also { list -> items(']') { list += value() } }
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> if (c == '-' || c in '0'..'9') number() else fail("unexpected $c")
        }
    }

    private fun members(): Map<String, Any?> {
        val map = LinkedHashMap<String, Any?>()
        items('}') {
            val key = string()
            if (unique && key in map) fail("$key stands twice")
            space()
            expect(':')
            map[key] = value()
        }
        return map
    }

    private inline fun items(end: Char, item: () -> Unit) {
        if (++depth > DEEPEST) fail("it is nested too deep")
        at++
        space()
        if (text.getOrNull(at) != end) {
            while (true) {
                space()
                item()
                space()
                if (text.getOrNull(at) == end) break
                expect(',')
            }
        }
        at++
        depth--
    }

    private fun string(): String {
        expect('"')
        val out = StringBuilder()
        while (true) {
            val c = text.getOrElse(at++) { fail("it ends in a string") }
            when {
                c == '"' -> return out.toString()
                c == '\\' -> out.append(escaped())
                c < ' ' -> fail("a control character stands in a string")
                else -> out.append(c)
            }
        }
    }

    private fun escaped(): Char = when (val c = text.getOrElse(at++) { fail("it ends in a string") }) {
        'u' -> {
            val digits = text.substring(at, minOf(at + 4, text.length))
            at += 4
            if (digits.length < 4 || digits.any { it !in "0123456789abcdefABCDEF" }) fail("\\u$digits is no character")
            digits.toInt(16).toChar()
        }
        'n' -> '\n'
        't' -> '\t'
        'r' -> '\r'
        'b' -> '\b'
        'f' -> '\u000c'
        '"', '\\', '/' -> c
        else -> fail("unexpected \\$c")
    }

    private fun number(): Any {
        val found = NUMBER.find(text, at)
        if (found == null || found.range.first != at) fail("unexpected ${text[at]}")
        at = found.range.last + 1
        val whole = found.groupValues[1].isEmpty() && found.groupValues[2].isEmpty()
        return (if (whole) found.value.toLongOrNull() else null) ?: found.value.toDouble()
    }

    private fun <T> word(word: String, value: T): T {
        if (!text.startsWith(word, at)) fail("unexpected ${text[at]}")
        at += word.length
        return value
    }

    private fun expect(c: Char) {
        if (text.getOrNull(at) != c) fail("$c expected")
        at++
    }

    private fun space() {
        while (at < text.length && text[at] in " \t\r\n") at++
    }

    private fun fail(why: String): Nothing = throw IllegalArgumentException("at character $at: $why")

    companion object {
        private const val DEEPEST = 200
        private val NUMBER = Regex("-?(?:0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?")

        /** [unique]: refuse an object that names something twice. Throws IllegalArgumentException. */
        fun parse(text: String, unique: Boolean = false): Any? = Json(text, unique).run {
            val found = value()
            space()
            if (at < text.length) fail("more after the end")
            found
        }

        /** Numbers that are not finite become null, which JSON has in their place. */
        fun write(value: Any?): String = StringBuilder().also { put(it, value) }.toString()

        private fun put(out: StringBuilder, value: Any?) {
            when (value) {
                null, is Boolean -> out.append(value)
                is Double -> out.append(if (value.isNaN() || value.isInfinite()) "null" else value.toString())
                is Float -> put(out, value.toDouble())
                is Number -> out.append(value)
                is Map<*, *> -> joined(out, '{', value.entries, '}') { (key, item) ->
                    quoted(out, key.toString())
                    out.append(": ")
                    put(out, item)
                }
                is Iterable<*> -> joined(out, '[', value, ']') { put(out, it) }
                else -> quoted(out, value.toString())
            }
        }

        private fun <T> joined(out: StringBuilder, open: Char, items: Iterable<T>, close: Char, each: (T) -> Unit) {
            out.append(open)
            items.forEachIndexed { place, item ->
                if (place > 0) out.append(", ")
                each(item)
            }
            out.append(close)
        }

        private fun quoted(out: StringBuilder, text: String) {
            out.append('"')
            for (c in text) {
                if (c in "\"\\") out.append('\\').append(c)
                else if (c < ' ' || c.isSurrogate()) out.append("\\u%04x".format(c.code))
                else out.append(c)
            }
            out.append('"')
        }
    }
}

/** An object's fields. What is missing or of another type is a BundleException that names it as [where] says. */
class Fields(private val map: Map<*, *>, private val where: String) {
    operator fun contains(name: String) = name in map

    operator fun get(name: String): Any? = if (name in map) map[name] else fail("lacks $name")

    fun text(name: String): String = get(name) as? String ?: odd(name)

    fun flag(name: String): Boolean = get(name) as? Boolean ?: odd(name)

    fun number(name: String): Double = number(get(name)) ?: odd(name)

    /** From 1 to 2³¹ − 1. */
    fun count(name: String): Int = whole(get(name), 1, Int.MAX_VALUE.toLong())?.toInt() ?: odd(name)

    fun size(name: String): Long = whole(get(name), 0, Long.MAX_VALUE) ?: odd(name)

    fun id(name: String): Int = id(get(name)) ?: odd(name)

    fun fields(name: String): Fields = Fields(get(name) as? Map<*, *> ?: odd(name), "$where.$name")

    fun texts(name: String): List<String> = list(name) { it as? String }

    fun ids(name: String): List<Int> = list(name, ::id)

    fun numbers(name: String): List<Double> = list(name, ::number)

    /** Numbers by name. */
    fun table(name: String): Map<String, Double> {
        val map = get(name) as? Map<*, *> ?: odd(name)
        return map.entries.associate { (key, value) -> key.toString() to (number(value) ?: odd(name)) }
    }

    /** Each item as [read] has it; null where it is none. */
    fun <T : Any> list(name: String, read: (Any?) -> T?): List<T> =
        (get(name) as? List<*> ?: odd(name)).map { read(it) ?: odd(name) }

    /** A list of objects. */
    fun objects(name: String): List<Fields> =
        list(name) { item -> (item as? Map<*, *>)?.let { Fields(it, "$where.$name") } }

    fun odd(name: String): Nothing = fail("has $name ${Json.write(map[name]).take(80)}")

    fun fail(why: String): Nothing = throw BundleException("$where $why")

    companion object {
        /** An id, or null. */
        fun id(value: Any?): Int? = whole(value, 0, Int.MAX_VALUE.toLong())?.toInt()

        private fun whole(value: Any?, least: Long, most: Long): Long? = (value as? Long)?.takeIf { it in least..most }

        private fun number(value: Any?): Double? =
            (value as? Double ?: (value as? Long)?.toDouble())?.takeIf { !it.isNaN() && !it.isInfinite() }
    }
}
