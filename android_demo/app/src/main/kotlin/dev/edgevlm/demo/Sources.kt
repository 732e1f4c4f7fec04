/** Where bundles come from: the app's own assets, a folder or a zip that the user chooses. */
package dev.edgevlm.demo

import android.content.ContentResolver
import android.content.res.AssetManager
import android.net.Uri
import android.provider.DocumentsContract
import android.provider.DocumentsContract.Document
import dev.edgevlm.core.BundleException
import dev.edgevlm.core.Offered
import java.io.FileNotFoundException

/** Of a folder in the assets; none where it is not there. */
fun offered(assets: AssetManager, folder: String): List<Offered> =
    assets.list(folder).orEmpty().map { name -> Offered(name) { assets.open("$folder/$name") } }

/** Of a folder that the user chose, with those in it. */
fun offered(resolver: ContentResolver, tree: Uri): List<Offered> =
    listed(resolver, tree, DocumentsContract.getTreeDocumentId(tree), "")

private fun listed(resolver: ContentResolver, tree: Uri, id: String, path: String): List<Offered> {
    val columns = arrayOf(Document.COLUMN_DOCUMENT_ID, Document.COLUMN_DISPLAY_NAME, Document.COLUMN_MIME_TYPE)
    val children = DocumentsContract.buildChildDocumentsUriUsingTree(tree, id)
    val cursor = resolver.query(children, columns, null, null, null)
        ?: throw BundleException("the folder cannot be listed", "choose it again")
    return cursor.use {
        generateSequence { if (it.moveToNext()) Triple(it.getString(0), it.getString(1), it.getString(2)) else null }
            .toList().flatMap { (child, name, kind) ->
                val uri = DocumentsContract.buildDocumentUriUsingTree(tree, child)
                val open = { resolver.openInputStream(uri) ?: throw FileNotFoundException(name) }
                if (kind == Document.MIME_TYPE_DIR) listed(resolver, tree, child, "$path$name/")
                else listOf(Offered("$path$name", open))
            }
    }
}

/** What a chosen document is called. */
fun name(resolver: ContentResolver, uri: Uri): String =
    resolver.query(uri, arrayOf(Document.COLUMN_DISPLAY_NAME), null, null, null)?.use {
        if (it.moveToFirst()) it.getString(0) else null
    }?.removeSuffix(".zip") ?: "bundle"
