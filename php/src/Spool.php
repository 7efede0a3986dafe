<?php

declare(strict_types=1);

namespace Chatws;

/**
 * A directory of lines that could not be delivered. README.md defines it; `chatws push --spool` reads it too.
 *
 * @internal
 */
final class Spool
{
    private const LOCK = '.lock';
    private const REFUSED = 'refused';
    private const ADDRESS = '.address';
    /** Seconds after which a half-written file has no writer any more. */
    private const STALE = 3600;

    /** Why write() has not kept everything. */
    public string $problem = '';
    /** @var resource|null */
    private $lock = null;
    /** Microseconds since 1970 in the name of the last file. */
    private int $last = 0;

    public function __construct(private readonly string $directory, private readonly int $maxFiles)
    {
    }

    /**
     * Keeps lines. They outlive this process and a restart of the server; there is no fsync, which would hold the
     * request up, so the last ones may not outlive a power cut.
     *
     * @param list<Line> $lines
     * @return int how many were kept; $problem says what became of the others
     */
    public function write(array $lines): int
    {
        return Quiet::call(function () use ($lines): int {
            if (!is_dir($this->directory) && !mkdir($this->directory, 0770, true) && !is_dir($this->directory)) {
                $this->problem = "cannot make {$this->directory}: " . Quiet::$warning;

                return 0;
            }
            $room = $this->maxFiles - \count($this->names());
            $kept = 0;
            foreach ($lines as $line) {
                if ($kept >= $room) {
                    $this->problem = "{$this->maxFiles} files wait there already";
                    break;
                }
                if (!$this->writeOne($line)) {
                    $this->problem = Quiet::$warning;
                    break;
                }
                ++$kept;
            }

            return $kept;
        });
    }

    /**
     * Takes the oldest lines, until release() or the end of the process; nobody else can take any meanwhile.
     *
     * @return array<string, Line> by name; empty when there are none, or when somebody else has them
     */
    public function take(int $maxLines, int $maxBytes, Log $log): array
    {
        return Quiet::call(function () use ($maxLines, $maxBytes, $log): array {
            if ($this->names() === [] || !$this->lock()) {
                return [];
            }
            $this->sweep();
            $taken = [];
            $size = 0;
            // Looked up again: whoever had the lock before may have sent some of them.
            foreach ($this->names() as $name) {
                $text = file_get_contents("{$this->directory}/{$name}");
                if ($text === false) {
                    $log->warning("the spool's {$name} cannot be read: " . Quiet::$warning);
                    continue;
                }
                $line = Line::parse(rtrim($text, "\r\n"));
                if ($line === null) {
                    $log->warning("the spool's {$name} holds no line");
                    $this->putAside($name);
                    continue;
                }
                $size += \strlen($line->json);
                if ($taken !== [] && $size > $maxBytes) {
                    break;
                }
                $taken[$name] = $line;
                if (\count($taken) >= $maxLines) {
                    break;
                }
            }

            return $taken;
        });
    }

    /** A line that was taken has been delivered. */
    public function remove(string $name): void
    {
        Quiet::call(fn (): bool => unlink("{$this->directory}/{$name}"));
    }

    /** A line that was taken will never be accepted: it goes to `refused/`, for a person to look at. */
    public function putAside(string $name): void
    {
        Quiet::call(function () use ($name): void {
            $refused = "{$this->directory}/" . self::REFUSED;
            if (!is_dir($refused)) {
                mkdir($refused, 0770);
            }
            rename("{$this->directory}/{$name}", "{$refused}/{$name}");
        });
    }

    /** Lets others take lines. */
    public function release(): void
    {
        if ($this->lock !== null) {
            flock($this->lock, \LOCK_UN); // a forked child may have it open too
            fclose($this->lock);
            $this->lock = null;
        }
    }

    /** How many lines wait. */
    public function count(): int
    {
        return Quiet::call(fn (): int => \count($this->names()));
    }

    /** The address that worked last, of whichever process. Null when none is known. */
    public function rememberedAddress(): ?string
    {
        $path = "{$this->directory}/" . self::ADDRESS;

        return is_file($path) ? Quiet::call(static fn (): ?string => file_get_contents($path) ?: null) : null;
    }

    /** Without a directory, or where it cannot be written to, nothing is remembered. */
    public function rememberAddress(string $address): void
    {
        Quiet::call(function () use ($address): void {
            $half = "{$this->directory}/." . bin2hex(random_bytes(6)) . '.tmp';
            if (is_dir($this->directory) || mkdir($this->directory, 0770, true)) {
                file_put_contents($half, $address) && rename($half, "{$this->directory}/" . self::ADDRESS);
            }
        });
    }

    /** @return list<string> the oldest first */
    private function names(): array
    {
        if (!is_dir($this->directory)) {
            return [];
        }
        $found = scandir($this->directory, \SCANDIR_SORT_ASCENDING) ?: [];

        return array_values(array_filter(
            $found,
            static fn (string $name): bool => $name[0] !== '.' && str_ends_with($name, '.json'),
        ));
    }

    private function lock(): bool
    {
        $path = "{$this->directory}/" . self::LOCK;
        $isNew = !file_exists($path);
        $file = fopen($path, 'c');
        if ($file === false) {
            return false;
        }
        if ($isNew) {
            chmod($path, 0660);
        }
        if (!flock($file, \LOCK_EX | \LOCK_NB)) {
            fclose($file);

            return false;
        }
        $this->lock = $file;

        return true;
    }

    /** Removes what processes that were killed have left half-written. */
    private function sweep(): void
    {
        foreach (glob("{$this->directory}/.*.tmp") ?: [] as $path) {
            if (time() - (int) filemtime($path) > self::STALE) {
                unlink($path);
            }
        }
    }

    private function writeOne(Line $line): bool
    {
        // The order of names is that of writing, at least within a process.
        $this->last = max($this->last + 1, (int) (microtime(true) * 1e6));
        $name = sprintf('%016d-%s', $this->last, bin2hex(random_bytes(6)));
        $half = "{$this->directory}/.{$name}.tmp";
        $file = fopen($half, 'x');
        if ($file === false) {
            return false;
        }
        chmod($half, 0660); // people's messages are in there
        $written = fwrite($file, "{$line->json}\n") === \strlen($line->json) + 1;
        if (fclose($file) && $written && rename($half, "{$this->directory}/{$name}.json")) {
            return true;
        }
        $reason = Quiet::$warning;
        unlink($half);
        Quiet::$warning = $reason;

        return false;
    }
}
