import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
    alias(libs.plugins.kotlin.compose)
}

android {
    namespace = "dev.edgevlm.demo"
    compileSdk = 36

    defaultConfig {
        applicationId = "dev.edgevlm.demo"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "0.2.0"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    buildFeatures { compose = true }

    sourceSets {
        // The screen; src/framework has that of the build without Google's servers.
        getByName("main").kotlin.srcDir("src/compose/kotlin")
        // A newer ONNX Runtime's manifest must not make an app of this one that reports.
        for (type in listOf("debug", "release")) getByName(type).manifest.srcFile("src/gradle/AndroidManifest.xml")
    }

    buildTypes {
        release {
            isMinifyEnabled = true
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"), "proguard-rules.pro")
        }
    }

    packaging { jniLibs { useLegacyPackaging = false } } // mapped from the APK, at pages of 16 KB

    // Compose's inline functions cannot be newer bytecode than what calls them.
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }

    // A bundle of your own: edge export CHECKPOINT -o android_demo/app/src/main/assets/demo
    androidResources { noCompress += listOf("data", "npy") }
}

kotlin {
    compilerOptions { jvmTarget.set(JvmTarget.JVM_11) }
}

dependencies {
    implementation(project(":core"))
    implementation(libs.onnxruntime.android)
    implementation(platform(libs.compose.bom))
    implementation(libs.compose.foundation)
    implementation(libs.compose.material3)
    implementation(libs.compose.runtime)
    implementation(libs.compose.ui)
    implementation(libs.activity.compose)
}
