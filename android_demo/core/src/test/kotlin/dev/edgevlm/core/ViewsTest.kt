/** A bundle that divides images into tiles: Python's answers. */
package dev.edgevlm.core

import org.junit.Assert.assertEquals
import org.junit.Test
import java.io.File

class ViewsTest {
    private val tiled = vectors(File(place("here"), "here.json"))["tiled"].items()

    @Test
    fun questionsAboutTilesHavePythonsAnswers() {
        assertEquals(3, tiled.size)
        Session.open(Bundle.open(File(place("here"), "tiled")), OnnxEngine(), Settings(2)).use { session ->
            assertEquals(5, session.bundle.manifest.mostViews)
            for (entry in tiled) {
                val picture = shown(entry)
                val seen = session.encode(picture)
                assertEquals(entry["grid"].numbers(), listOf(seen.rows, seen.columns))
                val chat = Chat(session, picture)
                val answer = chat.ask(entry["question"] as String, Ask(maxTokens = 24))
                assertEquals(entry["ids"].numbers(), answer.ids.toList())
                assertEquals(entry["text"], answer.text)
                assertEquals(entry["later"], chat.ask("Why?", Ask(maxTokens = 24)).text)
            }
        }
    }

    @Test
    fun tilesWithoutPiecesOfThePromptAreRefused() {
        val folder = temporary()
        File(place("here"), "tiled").copyRecursively(folder, overwrite = true)
        val manifest = File(folder, MANIFEST)
        manifest.writeText(manifest.readText().replace("\"views\": {\"tiles\"", "\"view\": {\"tiles\""))
        assertSays(thrown<BundleException> { Bundle.open(folder) }, "2 tiles a side")
    }
}
